"""Writes rope_norm_attention.npz from the published code of Hugging Face transformers, which needs torch: `make bench-env`, then

    .venv-bench/bin/python tests/golden/make_rope_norm_attention.py

Rotary embeddings of every scaling, norms, and attention layers in float32 on the CPU. Everything is seeded.
"""

import numpy as np
import torch
import transformers
from torch_layers import FOLDER, SEED
from transformers import Gemma2Config, GPTNeoXConfig, LlamaConfig, PhiConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as apply_partial
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

# Float32 angles carry an error of position * 2^-24; below 200 that is at most 1.2e-5, and 4e-6 in the mean over channels.
POSITIONS = [0, 1, 2, 3, 7, 16, 31, 64, 127, 199]
HEAD_DIM = 16
SCALINGS = {
    "default": dict(rope_type="default"),
    "base": dict(rope_type="default", rope_theta=500000.0),
    "linear": dict(rope_type="linear", factor=4.0),
    "llama3": dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128
    ),
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=128),
    "yarn_attention_factor": dict(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=128,
        attention_factor=0.75,
        beta_fast=16.0,
        beta_slow=2.0,
    ),
    "yarn_exact": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=128, truncate=False),
}


def sizes(**more):
    return dict(
        hidden_size=2 * HEAD_DIM, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32, vocab_size=16,
        max_position_embeddings=512,
    ) | more  # fmt: skip


def draw(*shape, std=1.0):
    return torch.randn(shape, generator=GENERATOR) * std


def ropes(out):
    q = draw(1, 2, len(POSITIONS), HEAD_DIM)  # published code has heads before time
    positions = torch.tensor([POSITIONS])
    out["rope/positions"], out["rope/q"] = positions.int(), q.transpose(1, 2)

    def write(name, embedding, apply):
        cos, sin = embedding(q, positions)
        half = cos.shape[-1] // 2
        out[f"rope/{name}/cos"], out[f"rope/{name}/sin"] = cos[..., :half], sin[..., :half]
        out[f"rope/{name}/rotated"] = apply(cos, sin).transpose(1, 2)

    for name, scaling in SCALINGS.items():
        config = LlamaConfig(**sizes(rope_parameters=dict(rope_theta=10000.0) | scaling))
        write(name, LlamaRotaryEmbedding(config), lambda cos, sin: apply_rotary_pos_emb(q, q, cos, sin)[0])

    neox = GPTNeoXConfig(
        **sizes(rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.25))
    )
    write("neox_quarter", GPTNeoXRotaryEmbedding(neox), lambda cos, sin: apply_partial(q, q, cos, sin)[0])

    phi = PhiConfig(**sizes(rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)))
    n = HEAD_DIM // 2  # PhiAttention rotates a slice and puts the rest back
    write("phi_half", PhiRotaryEmbedding(phi), lambda cos, sin: torch.cat(
        [apply_rotary_pos_emb(q[..., :n], q[..., :n], cos, sin)[0], q[..., n:]], -1))  # fmt: skip


def norms(out):
    x, scale, bias = draw(2, 3, 24) * 3 + 1, draw(24), draw(24)
    rms, layer = LlamaRMSNorm(24, eps=1e-3), torch.nn.LayerNorm(24, eps=1e-3)
    rms.weight.data, layer.weight.data, layer.bias.data = scale, scale, bias
    out |= {"norm/x": x, "norm/scale": scale, "norm/bias": bias, "norm/rms": rms(x), "norm/layer": layer(x)}


def causal_mask(T, window=None):
    t, s = torch.arange(T)[:, None], torch.arange(T)[None]
    seen = (s <= t) if window is None else (s <= t) & (t - s < window)
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]


def attentions(out):
    T, D = 21, 32
    x = draw(2, T, D)
    positions = torch.arange(T)[None]
    out["attention/x"] = x
    heads = dict(hidden_size=D, num_attention_heads=4, num_key_value_heads=2, head_dim=8, attn_implementation="eager")
    base = dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))

    def write(name, layer, config, mask):
        for parameter in layer.parameters():
            parameter.data = draw(*parameter.shape, std=0.3)
        cos_sin = LlamaRotaryEmbedding(config)(x, positions)
        out[f"attention/{name}/y"] = layer(x, position_embeddings=cos_sin, attention_mask=mask)[0]
        for path, parameter in layer.named_parameters():
            out[f"attention/{name}/{path.replace('.', '/')}"] = parameter

    llama = LlamaConfig(**sizes(**heads, **base, attention_bias=True))
    write("llama", LlamaAttention(llama, 0), llama, causal_mask(T))
    # Gemma 2 without its large queries would stay in the straight part of the cap.
    gemma = dict(**heads, **base, query_pre_attn_scalar=4, attn_logit_softcapping=2.0, sliding_window=5)
    for name, kind in (("gemma2_global", "full_attention"), ("gemma2_window", "sliding_attention")):
        config = Gemma2Config(**sizes(**gemma, layer_types=[kind]))
        layer = Gemma2Attention(config, 0)
        write(name, layer, config, causal_mask(T, layer.sliding_window))


if __name__ == "__main__":
    GENERATOR = torch.Generator().manual_seed(SEED)
    arrays = {}
    with torch.no_grad():
        ropes(arrays)
        norms(arrays)
        attentions(arrays)
    arrays = {name: np.asarray(x.detach().numpy()) for name, x in arrays.items()}
    arrays["versions"] = np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "rope_norm_attention.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size} bytes")
