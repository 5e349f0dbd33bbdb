"""Writes retnet.npz: the layer of flash-linear-attention in plain torch, around its own `naive_retention` and the rotation of
Transformers, as the layer itself needs a GPU: `make bench-env`, then

.venv-bench/bin/python tests/golden/make_retnet.py
"""

import torch
from make_gla import Layer
from torch_layers import SEED, case, disturb, draw, naive, write
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class RetNet(Layer):
    def retain(self, x):
        q, k, v = (x.transpose(1, 2) for x in self.by_head(x, "q", "k", "v"))
        frequency = 1.0 / 10000.0 ** (torch.arange(0, q.shape[-1], 2) / q.shape[-1])
        angle = torch.outer(torch.arange(x.shape[1]).float(), frequency).repeat(1, 2)[None]
        q, k = apply_rotary_pos_emb(q, k, angle.cos(), angle.sin())
        return naive("retention").naive_retention(q, k, v).transpose(1, 2)


if __name__ == "__main__":
    torch.manual_seed(SEED)

    def layer(name, time, **sizes):
        mixer = RetNet(**sizes)
        disturb(mixer)
        return case(name, mixer, draw(2, time, sizes["d_model"]), **sizes)

    write(
        "retnet",
        layer("small", 37, d_model=20, n_heads=2, key_dim=10, value_dim=20),
        layer("wide", 70, d_model=18, n_heads=3, key_dim=6, value_dim=11),
    )
