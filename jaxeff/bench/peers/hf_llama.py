"""Hugging Face Llama in torch, one training step at a time on request.

Started by `jaxeff bench train` with the Python of `.venv-bench`. One JSON object a line on stdin, one answer a line on
stdout: {"do": "setup", ...sizes}, {"do": "step"}, {"do": "matmul", "n": 1024}, {"do": "quit"}.
"""

import json
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch  # noqa: E402  (after the environment it reads)
import transformers  # noqa: E402


class Trainer:
    """Llama with its default SDPA attention, AdamW (fused, the fastest on a CPU) and clipping by global norm."""

    def __init__(self, *, d_model, n_layers, n_heads, n_kv_heads, d_hidden, vocab_size, batch, time, dtype, **_):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=d_model,
            num_hidden_layers=n_layers,
            num_attention_heads=n_heads,
            num_key_value_heads=n_kv_heads,
            intermediate_size=d_hidden,
            vocab_size=vocab_size,
            max_position_embeddings=time,
            tie_word_embeddings=True,
            use_cache=False,
            attn_implementation="sdpa",
        )
        self.model = transformers.LlamaForCausalLM(config).train()
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
