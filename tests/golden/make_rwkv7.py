"""Writes rwkv7.npz: `make bench-env`, then

    .venv-bench/bin/python tests/golden/make_rwkv7.py

The layers of flash-linear-attention need a GPU's kernels, so what stands around its plain recurrence is said here again in torch.
"""

import torch
import torch.nn.functional as F
from torch_layers import SEED, case, draw, naive, write


class Attention(torch.nn.Module):
    """The time mixer; `value_residual` False is the first layer."""

    def __init__(self, d_model, head_dim, ranks, value_residual):
        super().__init__()
        self.c, self.h, self.later = head_dim, d_model // head_dim, value_residual
        self.v_first = draw(2, 0, d_model)

        def weight(name, *shape, std=None, mean=0.0):
            self.register_parameter(name, torch.nn.Parameter(mean + draw(*shape, std=std or shape[0] ** -0.5)))

        for name in "rwkvag":
            weight(f"x_{name}", d_model, std=0.3, mean=0.5)
        for name in "rkvo":
            weight(name, d_model, d_model)
        for name, rank in zip(("decay", "rate", "value", "gate"), ranks, strict=True):
            if name != "value" or value_residual:
                weight(f"{name}_low", d_model, rank)
                weight(f"{name}_high", rank, d_model)
                if name != "gate":
                    weight(name, d_model, std=1.0)
        for name in ("removal", "replacement", "bonus"):
            weight(name, d_model, std=0.3, mean=0.7)
        self.norm = torch.nn.GroupNorm(self.h, d_model, eps=head_dim * 1e-5)
        self.norm.weight.data += draw(d_model, std=0.1)
        self.norm.bias.data += draw(d_model, std=0.1)

    def forward(self, x):
        B, T, D = x.shape
        heads = lambda a: a.unflatten(-1, (self.h, self.c)).transpose(1, 2)
        delta = F.pad(x, (0, 0, 1, -1)) - x
        x_r, x_w, x_k, x_v, x_a, x_g = (x + delta * getattr(self, f"x_{name}") for name in "rwkvag")
        r, k, v = x_r @ self.r, x_k @ self.k, x_v @ self.v
        w = -0.6065306597126334 * torch.sigmoid(torch.tanh(x_w @ self.decay_low) @ self.decay_high + self.decay)
        if self.later:
            v = torch.lerp(v, self.v_first, torch.sigmoid(x_v @ self.value_low @ self.value_high + self.value))
        a = torch.sigmoid(x_a @ self.rate_low @ self.rate_high + self.rate)
        g = torch.sigmoid(x_g @ self.gate_low) @ self.gate_high
        kk = F.normalize(heads(k * self.removal), dim=-1)
        k = k + k * (a - 1) * self.replacement
        r, w, k, v, a = map(heads, (r, w, k, v, a))
        # The published recurrence scales queries by C^-0.5, which the layer does not.
        o, self.state = naive("generalized_delta_rule/dplr").dplr_recurrence(r * self.c**0.5, k, v, -kk, kk * a, w)
        o = self.norm(o.transpose(1, 2).reshape(B * T, D)).view(B, T, D)
        bonus = self.bonus.view(self.h, 1, self.c)
        o = o + ((r * k * bonus).sum(-1, keepdim=True) * v).transpose(1, 2).reshape(B, T, D)
        return (o * g) @ self.o


class FeedForward(torch.nn.Module):
    """The channel mixer."""

    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.x_k = torch.nn.Parameter(0.5 + draw(d_model, std=0.3))
        self.k = torch.nn.Parameter(draw(d_model, d_hidden, std=d_model**-0.5))
        self.v = torch.nn.Parameter(draw(d_hidden, d_model, std=d_hidden**-0.5))

    def forward(self, x):
        delta = F.pad(x, (0, 0, 1, -1)) - x
        return torch.relu((x + delta * self.x_k) @ self.k) ** 2 @ self.v


def attention(name, time, **sizes):
    layer = Attention(**sizes)
    layer.v_first = draw(2, time, sizes["d_model"])
    return case(name, layer, draw(2, time, sizes["d_model"]), **sizes) | {f"{name}/v_first": layer.v_first.numpy()}


if __name__ == "__main__":
    torch.manual_seed(SEED)
    write(
        "rwkv7",
        attention("first", 37, d_model=18, head_dim=6, ranks=(5, 4, 3, 7), value_residual=False),
        attention("later", 70, d_model=20, head_dim=10, ranks=(3, 5, 4, 6), value_residual=True),
        case("channel", FeedForward(18, 26), draw(2, 11, 18), d_model=18, d_hidden=26),
        case("channel_wide", FeedForward(12, 40), draw(1, 7, 12), d_model=12, d_hidden=40),
    )
