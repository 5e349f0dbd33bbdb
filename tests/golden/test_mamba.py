"""Mamba and Falcon-Mamba against Transformers' values; see make_mamba.py."""

import numpy as np
import pytest

from jaxeff.mixers.mamba import Mamba
from jaxeff.mixers.short_conv import ShortConv
from tests.golden.published import agree, cases

CASES = cases("mamba")


def ours(sizes):
    sizes = dict(sizes)
    return Mamba(conv=ShortConv(sizes.pop("width")), **sizes)


def converter(mixer):
    """Arrays of the published layer by path -> our tree."""

    def convert(w):
        x, z = np.split(w["in_proj/weight"].T, 2, axis=1)
        dt_low, b, c = np.split(w["x_proj/weight"].T, np.cumsum([mixer.rank, mixer.d_state]), axis=1)
        tree = {
            "z": z,
            "x": x,
            "dt_low": dt_low,
            "b": b,
            "c": c,
            "dt": w["dt_proj/weight"].T,
            "dt_bias": w["dt_proj/bias"],
        }
        tree["conv_x"] = {"w": w["conv1d/weight"][:, 0].T, "bias": w["conv1d/bias"]}
        return tree | {"a_log": w["A_log"], "skip": w["D"], "o": w["out_proj/weight"].T}

    return convert


@pytest.mark.parametrize("name", CASES)
def test_mamba(name):
    mixer = ours(CASES[name]["sizes"])
    agree(mixer, CASES[name], converter(mixer), state=lambda s: s.h)
