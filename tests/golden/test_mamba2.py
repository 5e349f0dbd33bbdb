"""Mamba-2 against Transformers' values; see make_mamba2.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.mixers.mamba2 import Mamba2
from jaxeff.mixers.norm import RMSNorm
from jaxeff.mixers.short_conv import ShortConv
from tests.golden.published import agree, cases

CASES = cases("mamba2")


def ours(sizes):
    sizes = dict(sizes, dt_limit=tuple(sizes["dt_limit"]))
    return Mamba2(conv=ShortConv(sizes.pop("width")), norm=RMSNorm(1e-5), **sizes)


def converter(mixer):
    """Arrays of the published layer by path -> our tree."""
    d, h, e, g, n = mixer.d_model, mixer.heads, mixer.head, mixer.n_groups, mixer.d_state
    inner, state = h * e, g * n

    def convert(w):
        parts = np.split(w["in_proj/weight"].T, np.cumsum([inner, inner, state, state]), axis=1)
        tree = dict(zip(("z", "x", "b", "c", "dt"), parts, strict=True))
        shapes = {"z": (h, e), "x": (h, e), "b": (g, n), "c": (g, n), "dt": (h,)}
        tree = {name: tree[name].reshape(d, *shape) for name, shape in shapes.items()}
        ends = np.cumsum([inner, state])
        conv = zip(
            "xbc", np.split(w["conv1d/weight"][:, 0].T, ends, axis=1), np.split(w["conv1d/bias"], ends), strict=True
        )
        for name, weight, bias in conv:
            tree[f"conv_{name}"] = {"w": weight.reshape(-1, *shapes[name]), "bias": bias.reshape(shapes[name])}
        tree |= {"a_log": w["A_log"], "dt_bias": w["dt_bias"], "skip": w["D"]}
        return tree | {"norm": {"scale": w["norm/weight"].reshape(h, e)}, "o": w["out_proj/weight"].T.reshape(h, e, d)}

    return convert


@pytest.mark.parametrize("name", CASES)
def test_mamba2(name):
    mixer = ours(CASES[name]["sizes"])
    agree(mixer, CASES[name], converter(mixer), state=lambda s: jnp.swapaxes(s.S, -1, -2))
