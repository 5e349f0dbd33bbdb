"""A language model of Hugging Face transformers in torch, one training step at a time on request.

Started by `jaxeff bench train` and `jaxeff bench transforms` with the Python of `.venv-bench`. One JSON object a line on
stdin, one answer a line on stdout: {"do": "setup", "model": "llama", ...}, {"do": "step"}, {"do": "matmul", "n": 1024},
{"do": "quit"}.
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
    """A model as its library makes it (Llama: SDPA attention), AdamW (fused, the fastest on a CPU), clipping by global norm.

    lora: see `adapted`, None for training of all weights.
    """

    def __init__(self, *, model, d_model, n_layers, vocab_size, batch, time, dtype, fields, lora=None):
        torch.manual_seed(0)
        make, defaults = CONFIGS[model]
        if isinstance(fields.get("layer_types"), str):
            fields["layer_types"] = [fields["layer_types"]] * n_layers
        config = make(
            hidden_size=d_model, num_hidden_layers=n_layers, vocab_size=vocab_size, max_position_embeddings=time,
            tie_word_embeddings=True, use_cache=False, pad_token_id=0, **defaults, **fields,
        )  # fmt: skip
        self.model = transformers.AutoModelForCausalLM.from_config(config).train()
        if lora is not None:
            self.model = adapted(self.model, **lora)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.tokens = torch.randint(0, vocab_size, (batch, time))
        self.dtype = None if dtype == "float32" else getattr(torch, dtype)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            loss = self.model(input_ids=self.tokens, labels=self.tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return float(loss)

    def generate(self, prompt, tokens):
        """Greedy, with a cache, without an end."""
        self.model.eval()
        ids = torch.tensor(prompt)
        with torch.inference_mode():
            self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                use_cache=True, pad_token_id=0, eos_token_id=None,
            )  # fmt: skip

    def count(self):
        return sum(p.numel() for p in self.model.parameters())


def adapted(model, rank, alpha, targets):
    """The model with adapters by peft beside its linear layers of these names; they alone train."""
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))


def matmul(n, dtype="float32", repeats=4):
    x = torch.randn(n, n).to(getattr(torch, dtype))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - start)
    return min(times)


def versions():
    """Those of the libraries in use."""
    return {name: sys.modules[name].__version__ for name in ("torch", "transformers", "peft") if name in sys.modules}


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
                    "n_trained": sum(p.numel() for p in trainers[name].trained),
                    "threads": torch.get_num_threads(),
                    "versions": versions(),
                }
            )
        elif do == "step":
            start = time.perf_counter()
            loss = trainers[name].step()
            answer({"seconds": time.perf_counter() - start, "loss": loss})
        elif do == "generate":
            start = time.perf_counter()
            trainers[name].generate(**request)
            answer({"seconds": time.perf_counter() - start})
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
