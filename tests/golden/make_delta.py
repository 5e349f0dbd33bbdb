"""Writes delta.npz: `make bench-env`, then

    .venv-bench/bin/python tests/golden/make_delta.py

Gated DeltaNet from Qwen3-Next of Hugging Face transformers. DeltaNet, KDA and Gated DeltaProduct from the plain recurrences of
flash-linear-attention; its layers need a GPU's kernels, so what stands around the recurrence is said here again in torch.
"""

import torch
import torch.nn.functional as F
from torch_layers import SEED, cached, case, disturb, draw, naive, write
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next


def unit(x):
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


class Layer(torch.nn.Module):
    """Projections and convolutions of q, k, v, a norm per head, an output projection, with named weights."""

    def __init__(self, d_model, n_heads, n_key_heads, head_dim, value_dim, width, steps=1, negative=False, gates=()):
        super().__init__()
        self.h, self.c, self.e, self.n, self.negative = n_heads, head_dim, value_dim, steps, negative
        keys, values = n_key_heads * head_dim, n_heads * value_dim
        sizes = {"q": keys, "k": steps * keys, "v": steps * values}
        for name, size in sizes.items():
            self.register_parameter(name, torch.nn.Parameter(draw(d_model, size, std=d_model**-0.5)))
            self.register_parameter(f"conv_{name}", torch.nn.Parameter(draw(width, size, std=0.5)))
        self.beta = torch.nn.Parameter(draw(d_model, steps * n_heads, std=d_model**-0.5))
        self.norm = torch.nn.Parameter(1 + draw(value_dim, std=0.1))
        self.o = torch.nn.Parameter(draw(values, d_model, std=values**-0.5))
        for name, shape in gates:
            self.register_parameter(name, torch.nn.Parameter(draw(*shape, std=0.3)))

    def heads(self, x, name, width):
        u = x @ getattr(self, name)
        w = getattr(self, f"conv_{name}")
        u = F.conv1d(F.pad(u.transpose(1, 2), (len(w) - 1, 0)), w.T[:, None], groups=w.shape[1]).transpose(1, 2)
        return F.silu(u).unflatten(-1, (-1, width))

    def qkv(self, x):
        q, k = (unit(self.heads(x, name, self.c)) for name in "qk")
        q = q.repeat_interleave(self.h // q.shape[2], dim=2)
        k = k.repeat_interleave(self.n * self.h // k.shape[2], dim=2)
        beta = torch.sigmoid(x @ self.beta) * (2 if self.negative else 1)
        return q, k, self.heads(x, "v", self.e), beta

    def out(self, o, gate):
        o = o * torch.rsqrt(o.pow(2).mean(-1, keepdim=True) + 1e-5) * self.norm * gate
        return o.flatten(-2) @ self.o


class DeltaNet(Layer):
    def forward(self, x):
        q, k, v, beta = (a.transpose(1, 2) for a in self.qkv(x))
        o, self.state = naive("delta_rule").delta_rule_recurrence(q, k, v, beta)
        return self.out(o.transpose(1, 2), 1.0)


class KDA(Layer):
    def forward(self, x):
        q, k, v, beta = self.qkv(x)
        f = (x @ self.dt_low @ self.dt).unflatten(-1, (self.h, self.c))
        g = -self.a_log.exp()[:, None] * F.softplus(f + self.dt_bias.view(self.h, self.c))
        o, self.state = recurrent(q * self.c**-0.5, k, v, g, beta)
        with torch.no_grad():  # the published function writes in place and has no gradients
            torch.testing.assert_close(naive("kda").naive_recurrent_kda(q, k, v, g, beta)[0], o)
        z = (x @ self.z_low @ self.z + self.z_bias).unflatten(-1, (self.h, self.e))
        return self.out(o, torch.sigmoid(z))


class GatedDeltaProduct(Layer):
    def forward(self, x):
        q, k, v, beta = self.qkv(x)
        n = self.n
        k, v, beta = (a.unflatten(2, (n, -1)).flatten(1, 2) for a in (k, v, beta))
        g = -self.a_log.exp() * F.softplus(x @ self.dt + self.dt_bias)
        o, S = [], torch.zeros(x.shape[0], self.h, self.c, self.e)
        for t in range(x.shape[1]):
            S = S * g[:, t].exp()[..., None, None]
            for j in range(t * n, t * n + n):
                S = (
                    S
                    + (beta[:, j, :, None] * k[:, j])[..., None]
                    * (v[:, j] - (S * k[:, j, ..., None]).sum(-2))[..., None, :]
                )
            o.append((q[:, t, ..., None] * S).sum(-2) * self.c**-0.5)
        o, self.state = torch.stack(o, 1), S
        with torch.no_grad():
            published = naive("gated_delta_product").naive_recurrent_gated_delta_product
            torch.testing.assert_close(published(q, k, v, g, beta, self.c**-0.5, num_householder=n)[0], o)
        return self.out(o, F.silu((x @ self.z).unflatten(-1, (self.h, self.e))))


def recurrent(q, k, v, g, beta):
    """The delta rule with a gate per channel, out of place."""
    S, o = torch.zeros(*q.shape[:1], q.shape[2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[1]):
        S = S * g[:, t, ..., None].exp()
        S = S + (beta[:, t, :, None] * k[:, t])[..., None] * (v[:, t] - (S * k[:, t, ..., None]).sum(-2))[..., None, :]
        o.append((q[:, t, ..., None] * S).sum(-2))
    return torch.stack(o, 1), S


def qwen(name, time, **sizes):
    config = Qwen3NextConfig(
        hidden_size=sizes["d_model"], linear_num_value_heads=sizes["n_heads"], linear_num_key_heads=sizes["n_key_heads"],
        linear_key_head_dim=sizes["head_dim"], linear_value_head_dim=sizes["value_dim"], linear_conv_kernel_dim=sizes["width"],
        num_hidden_layers=1, vocab_size=16, rms_norm_eps=1e-5, layer_types=["linear_attention"],
    )  # fmt: skip
    layer = qwen3_next.Qwen3NextGatedDeltaNet(config, layer_idx=0)
    disturb(layer)
    return case(
        name, layer, draw(2, time, sizes["d_model"]), state=cached(layer, config), kind="gated_deltanet", **sizes
    )


def ours(name, make, kind, time, gates=(), **sizes):
    return case(name, make(**sizes, gates=gates), draw(2, time, sizes["d_model"]), kind=kind, **sizes)


# Of its two published forms the one token by token: the gates' gradients of the one in chunks, which subtracts sums of decays, are
# off by 4e-4 where decays are strong (seed 1), against differences of the equations in float64.
qwen3_next.torch_chunk_gated_delta_rule = qwen3_next.torch_recurrent_gated_delta_rule

if __name__ == "__main__":
    torch.manual_seed(SEED)

    def sized(d, h, k, c, e, width):
        return dict(d_model=d, n_heads=h, n_key_heads=k, head_dim=c, value_dim=e, width=width)

    small, wide = sized(14, 2, 1, 6, 5, 4), sized(18, 3, 3, 7, 9, 3)

    def kda(s):
        d, h, c, e = s["d_model"], s["n_heads"], s["head_dim"], s["value_dim"]
        low = [("dt_low", (d, e)), ("dt", (e, h * c)), ("dt_bias", (h * c,)), ("a_log", (h,))]
        return [*low, ("z_low", (d, e)), ("z", (e, h * e)), ("z_bias", (h * e,))]

    def product(s):
        d, h, e = s["d_model"], s["n_heads"], s["value_dim"]
        return [("dt", (d, h)), ("dt_bias", (h,)), ("a_log", (h,)), ("z", (d, h * e))]

    write(
        "delta",
        qwen("gated_small", 37, **small),
        qwen("gated_wide", 70, **wide),
        ours("plain_small", DeltaNet, "deltanet", 37, **small),
        ours("plain_negative", DeltaNet, "deltanet", 70, **wide, negative=True),
        ours("kda_small", KDA, "kda", 37, kda(small), **small),
        ours("kda_wide", KDA, "kda", 70, kda(wide), **wide, negative=True),
        ours(
            "product_small",
            GatedDeltaProduct,
            "gated_deltaproduct",
            19,
            product(small),
            **small,
            steps=2,
            negative=True,
        ),
        ours(
            "product_wide", GatedDeltaProduct, "gated_deltaproduct", 35, product(wide), **wide, steps=3, negative=False
        ),
    )
