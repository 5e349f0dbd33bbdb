"""The delta rule's mixers against published code; see make_delta.py."""

import numpy as np
import pytest

from jaxeff.mixers.registry import MIXERS
from jaxeff.mixers.short_conv import ShortConv
from tests.golden.published import agree, cases

CASES = cases("delta")


def ours(sizes):
    sizes = dict(sizes)
    return MIXERS[sizes.pop("kind")](conv=ShortConv(sizes.pop("width"), bias=False), **sizes)


def shapes(m):
    """Of our parameters but for the convolutions and the norm, by name."""
    d, h, c, e, n = m.d_model, m.heads, m.head, m.value, m.steps
    return {
        "q": (d, m.key_heads, c), "k": (d, n * m.key_heads, c), "v": (d, n * h, e), "beta": (d, n * h), "o": (h, e, d),
        "z": (-1, h, e), "z_bias": (h, e), "dt_bias": (h, -1) if type(m).__name__ == "KDA" else (h,),
        "dt": (-1, h, c) if type(m).__name__ == "KDA" else (d, h),
    }  # fmt: skip


def from_plain(m):
    """Weights by our names, heads and channels in one axis."""

    def convert(w):
        reshaped = {name: x.reshape(shapes(m)[name]) if name in shapes(m) else x for name, x in w.items()}
        convs = {n: {"w": reshaped.pop(n).reshape(-1, *shapes(m)[n[-1]][1:])} for n in ("conv_q", "conv_k", "conv_v")}
        return reshaped | convs | {"norm": {"scale": reshaped.pop("norm")}}

    return convert


def from_qwen(m):
    """Weights of Qwen3-Next: q, k and the v and z of a key head's group side by side, beta and dt likewise."""
    d, k, c, e, g = m.d_model, m.key_heads, m.head, m.value, m.heads // m.key_heads

    def convert(w):
        qkvz = w["in_proj_qkvz/weight"].T.reshape(d, k, -1)
        q, key, v, z = np.split(qkvz, np.cumsum([c, c, g * e]), axis=-1)
        beta, dt = np.split(w["in_proj_ba/weight"].T.reshape(d, k, 2 * g), 2, axis=-1)
        tree = {"q": q, "k": key, "v": v, "z": z, "beta": beta, "dt": dt, "o": w["out_proj/weight"].T}
        tree = {name: x.reshape(shapes(m)[name]) for name, x in tree.items()}
        conv = np.split(w["conv1d/weight"][:, 0].T, np.cumsum([k * c, k * c]), axis=1)
        tree |= {f"conv_{n}": {"w": x.reshape(-1, *shapes(m)[n][1:])} for n, x in zip("qkv", conv, strict=True)}
        return tree | {"norm": {"scale": w["norm/weight"]}, "a_log": w["A_log"], "dt_bias": w["dt_bias"]}

    return convert


@pytest.mark.parametrize("name", CASES)
def test_delta(name):
    mixer = ours(CASES[name]["sizes"])
    agree(mixer, CASES[name], (from_qwen if name.startswith("gated") else from_plain)(mixer), state=lambda s: s.S)
