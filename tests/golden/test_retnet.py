"""RetNet against flash-linear-attention's values; see make_retnet.py."""

import pytest

from jaxeff.mixers.retnet import RetNet
from tests.golden.published import agree, cases

CASES = cases("retnet")


def converter(mixer):
    """Arrays of the published layer by path -> our tree."""
    d, h = mixer.d_model, mixer.heads

    def convert(w):
        parts = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "z": "g_proj"}
        tree = {name: w[f"{path}/weight"].T.reshape(d, h, -1) for name, path in parts.items()}
        o = w["o_proj/weight"].T.reshape(h, -1, d)
        return tree | {"o": o, "norm": {"scale": w["g_norm_swish_gate/weight"]}}

    return convert


@pytest.mark.parametrize("name", CASES)
def test_retnet(name):
    mixer = RetNet(**CASES[name]["sizes"])
    agree(mixer, CASES[name], converter(mixer))
