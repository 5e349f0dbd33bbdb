"""GLA against flash-linear-attention's values; see make_gla.py."""

import pytest

from jaxeff.mixers.gla import GLA
from tests.golden.published import agree, cases

CASES = cases("gla")


def converter(mixer):
    """Arrays of the published layer by path -> our tree."""
    h = mixer.heads

    def convert(w):
        parts = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "z": "g_proj", "a": "gk_proj/1"}
        tree = {name: w[f"{path}/weight"].T for name, path in parts.items()}
        tree = {name: weight.reshape(len(weight), h, -1) for name, weight in tree.items()}
        tree |= {"a_low": w["gk_proj/0/weight"].T, "a_bias": w["gk_proj/1/bias"].reshape(h, -1)}
        o = w["o_proj/weight"].T.reshape(h, -1, mixer.d_model)
        return tree | {"o": o, "norm": {"scale": w["g_norm_swish_gate/weight"]}}

    return convert


@pytest.mark.parametrize("name", CASES)
def test_gla(name):
    mixer = GLA(**CASES[name]["sizes"])
    agree(mixer, CASES[name], converter(mixer), state=lambda s: s.S)
