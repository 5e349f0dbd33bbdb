"""Griffin's recurrent block against Transformers' values; see make_rglru.py."""

import pytest

from jaxeff.mixers.rglru import RGLRU
from jaxeff.mixers.short_conv import ShortConv
from tests.golden.published import agree, cases

CASES = cases("rglru")


def ours(sizes):
    sizes = dict(sizes)
    return RGLRU(conv=ShortConv(sizes.pop("width"), activation=None), **sizes)


def converter(mixer):
    """Arrays of the published layer by path -> our tree."""
    inner = mixer.heads, mixer.head

    def convert(w):
        tree = {name: w[f"linear_{name}/weight"].T.reshape(-1, *inner) for name in "yx"}
        tree |= {f"{name}_bias": w[f"linear_{name}/bias"].reshape(inner) for name in "yx"}
        tree |= {"o": w["linear_out/weight"].T.reshape(*inner, -1), "o_bias": w["linear_out/bias"]}
        for ours, theirs in (("r", "recurrent_gate"), ("i", "input_gate")):
            tree |= {ours: w[f"rg_lru/{theirs}_weight"], f"{ours}_bias": w[f"rg_lru/{theirs}_bias"]}
        taps = w["conv_1d/weight"][:, 0].T.reshape(-1, *inner)
        conv = {"w": taps, "bias": w["conv_1d/bias"].reshape(inner)}
        return tree | {"conv_x": conv, "a_param": w["rg_lru/recurrent_param"].reshape(inner)}

    return convert


@pytest.mark.parametrize("name", CASES)
def test_rglru(name):
    mixer = ours(CASES[name]["sizes"])
    agree(mixer, CASES[name], converter(mixer), state=lambda s: s.h)
