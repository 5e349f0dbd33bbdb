"""Writes peft_start.npz: prompt and prefix tuning by Hugging Face PEFT on a small Llama of transformers: `make bench-env`, then

.venv-bench/bin/python tests/golden/make_peft_start.py
"""

import json

import numpy as np
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch_layers import GENERATOR, SEED, disturb, draw, write
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, TIME, VIRTUAL = 16, 7, 3
SIZES = dict(d_model=12, n_heads=4, n_kv_heads=2, head_dim=6, d_hidden=22, n_layers=2)


def case(name, config):
    """The logits of two texts, and the gradient of what was learned: of sum(r logits)."""
    published = LlamaConfig(
        hidden_size=12, num_attention_heads=4, num_key_value_heads=2, head_dim=6, intermediate_size=22, num_hidden_layers=2,
        vocab_size=VOCABULARY, rms_norm_eps=1e-5, attn_implementation="eager", tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0), pad_token_id=None,
    )  # fmt: skip
    plain = LlamaForCausalLM(published)
    disturb(plain)
    model = get_peft_model(plain, config).eval()
    learned = model.prompt_encoder.default.embedding.weight
    learned.data += draw(*learned.shape, std=0.5)
    tokens = torch.randint(0, VOCABULARY, (2, TIME), generator=GENERATOR)
    # A prompt has logits too, which nobody asks for.
    logits = model(input_ids=tokens).logits[:, -TIME:]
    r = draw(*logits.shape)
    torch.sum(logits * r).backward()
    found = {"x": tokens, "y": logits, "cotangent": r, "param/learned": learned, "grad/learned": learned.grad}
    layers = {path.removeprefix("model."): p for path, p in plain.named_parameters() if "lm_head" not in path}
    found |= {f"param/{path.replace('.', '/')}": p for path, p in layers.items()}
    arrays = {f"{name}/{key}": value.detach().numpy() for key, value in found.items()}
    return arrays | {f"{name}/sizes": np.array(json.dumps(SIZES))}


if __name__ == "__main__":
    torch.manual_seed(SEED)
    virtual = dict(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
    write(
        "peft_start",
        case("prompt", PromptTuningConfig(**virtual)),
        case("prefix", PrefixTuningConfig(**virtual)),
    )
