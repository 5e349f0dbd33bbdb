"""A language model of Hugging Face transformers in torch, one training step at a time on request.

Started by `jaxeff bench train` with the Python of `.venv-bench`. One JSON object a line on stdin, one answer a line on
stdout: {"do": "setup", "model": "llama", ...}, {"do": "step"}, {"do": "matmul", "n": 1024}, {"do": "quit"}.
"""

import json
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch  # noqa: E402  (after the environment it reads)
import transformers  # noqa: E402

CONFIGS = {
    "llama": (transformers.LlamaConfig, dict(attn_implementation="sdpa")),
    "mamba": (transformers.MambaConfig, {}),
    "mamba2": (transformers.Mamba2Config, {}),
    "rwkv": (transformers.RwkvConfig, {}),
    "recurrent_gemma": (transformers.RecurrentGemmaConfig, {}),
    "qwen3_next": (transformers.Qwen3NextConfig, {}),
}


class Trainer:
    """A model as its library makes it (Llama: SDPA attention), AdamW (fused, the fastest on a CPU), clipping by global norm."""

    def __init__(self, *, model, d_model, n_layers, vocab_size, batch, time, dtype, fields):
        torch.manual_seed(0)
        make, defaults = CONFIGS[model]
        if isinstance(fields.get("layer_types"), str):
            fields["layer_types"] = [fields["layer_types"]] * n_layers
        config = make(
            hidden_size=d_model, num_hidden_layers=n_layers, vocab_size=vocab_size, max_position_embeddings=time,
            tie_word_embeddings=True, use_cache=False, pad_token_id=0, **defaults, **fields,
        )  # fmt: skip
        self.model = transformers.AutoModelForCausalLM.from_config(config).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        self.tokens = torch.randint(0, vocab_size, (batch, time))
        self.dtype = None if dtype == "float32" else getattr(torch, dtype)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            loss = self.model(input_ids=self.tokens, labels=self.tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss)

    def count(self):
        return sum(p.numel() for p in self.model.parameters())


def matmul(n, dtype="float32", repeats=4):
    x = torch.randn(n, n).to(getattr(torch, dtype))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - start)
    return min(times)


def serve(lines, answer):
    trainers = {}
    for line in lines:
        request = json.loads(line)
        do, name = request.pop("do"), request.pop("name", "")
        if do == "setup":
            trainers[name] = Trainer(**request)
            answer(
                {
                    "n_params": trainers[name].count(),
                    "threads": torch.get_num_threads(),
                    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
                }
            )
        elif do == "step":
            start = time.perf_counter()
            loss = trainers[name].step()
            answer({"seconds": time.perf_counter() - start, "loss": loss})
        elif do == "drop":
            answer({"dropped": trainers.pop(name, None) is not None})
        elif do == "matmul":
            answer({"seconds": matmul(**request)})
        elif do == "quit":
            return


def main():
    # Whatever libraries print goes to stderr: stdout carries answers alone.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message):
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    serve(sys.stdin, answer)


if __name__ == "__main__":
    main()
