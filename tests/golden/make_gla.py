"""Writes gla.npz: the layer of flash-linear-attention in plain torch, around its own recurrence `naive_recurrent_gla`, as the
layer itself needs a GPU: `make bench-env`, then

.venv-bench/bin/python tests/golden/make_gla.py
"""

import torch
from torch import nn
from torch_layers import SEED, case, disturb, draw, naive, write


class Layer(nn.Module):
    """Parameters by their published names, and what is common to GLA and RetNet: norm(o) silu(z) Wo."""

    def __init__(self, d_model, n_heads, key_dim, value_dim):
        super().__init__()
        self.shape = n_heads, -1
        for name, n in {"q": key_dim, "k": key_dim, "v": value_dim, "g": value_dim}.items():
            self.add_module(f"{name}_proj", nn.Linear(d_model, n_heads * n, bias=False))
        self.g_norm_swish_gate = nn.RMSNorm(value_dim, eps=1e-5)
        self.o_proj = nn.Linear(n_heads * value_dim, d_model, bias=False)

    def by_head(self, x, *names):
        """[B, T, H, channels] of each projection."""
        return [getattr(self, f"{name}_proj")(x).unflatten(-1, self.shape) for name in names]

    def forward(self, x):
        (z,) = self.by_head(x, "g")
        return self.o_proj((self.g_norm_swish_gate(self.retain(x)) * nn.functional.silu(z)).flatten(-2))


class GLA(Layer):
    def __init__(self, d_model, n_heads, rank, temperature, key_dim, value_dim):
        super().__init__(d_model, n_heads, key_dim, value_dim)
        self.temperature = temperature
        low, high = nn.Linear(d_model, rank, bias=False), nn.Linear(rank, n_heads * key_dim)
        self.gk_proj = nn.Sequential(low, high)

    def retain(self, x):
        q, k, v, gk = self.by_head(x, "q", "k", "v", "gk")
        gk = nn.functional.logsigmoid(gk) / self.temperature
        o, self.state = naive("gla").naive_recurrent_gla(q, k, v, gk, output_final_state=True)
        return o


if __name__ == "__main__":
    torch.manual_seed(SEED)

    def layer(name, time, **sizes):
        mixer = GLA(**sizes)
        disturb(mixer)
        return case(name, mixer, draw(2, time, sizes["d_model"]), **sizes)

    write(
        "gla",
        layer("small", 37, d_model=20, n_heads=2, key_dim=5, value_dim=10, rank=16, temperature=16),
        layer("wide", 70, d_model=24, n_heads=3, key_dim=7, value_dim=11, rank=5, temperature=0.5),
    )
