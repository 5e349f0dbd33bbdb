"""RWKV-6 against flash-linear-attention's values; see make_rwkv6.py."""

import numpy as np
import pytest

from jaxeff.mixers.norm import LayerNorm
from jaxeff.mixers.rwkv6 import MIXES, RWKV6, RWKV6Channel
from tests.golden.published import agree, cases

CASES = cases("rwkv6")


def convert_time(mixer):
    """Arrays of the published layer by path -> our tree."""
    d, h, c, rank = mixer.d_model, mixer.heads, mixer.head, mixer.mix_rank

    def convert(w):
        tree = {name: w[f"{name}_proj/linear/weight"].T.reshape(d, h, c) for name in "rkvg"}
        tree |= {f"mix_{name}": w["x_bias"][n] for n, name in enumerate(MIXES)}
        up = w["x_proj/2/weight"].reshape(d, len(MIXES), rank)
        return tree | {
            "mix_x": w["x_proj/0/mu"],
            "mix_down": w["x_proj/0/linear/weight"].T.reshape(d, len(MIXES), rank),
            "mix_up": np.moveaxis(up, 0, 2),
            "decay": w["w_proj/linear/lora/2/bias"].reshape(h, c),
            "decay_down": w["w_proj/linear/lora/0/weight"].T,
            "decay_up": w["w_proj/linear/lora/2/weight"].T.reshape(-1, h, c),
            "bonus": w["bonus"],
            "norm": {"scale": w["g_norm/weight"].reshape(h, c), "bias": w["g_norm/bias"].reshape(h, c)},
            "o": w["o_proj/weight"].T.reshape(h, c, d),
        }

    return convert


def convert_channel(w):
    """Arrays of the published layer by path -> our tree."""
    paths = {"k": "key/linear/weight", "r": "receptance/linear/weight", "v": "value/weight"}
    tree = {name: w[path].T for name, path in paths.items()}
    return tree | {"mix_k": w["key/mu"], "mix_r": w["receptance/mu"]}


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("time")])
def test_rwkv6(name):
    sizes = dict(CASES[name]["sizes"])
    mixer = RWKV6(norm=LayerNorm(sizes.pop("eps")), **sizes)
    agree(mixer, CASES[name], convert_time(mixer), state=lambda s: s.S)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("channel")])
def test_rwkv6_channel(name):
    agree(RWKV6Channel(**CASES[name]["sizes"]), CASES[name], convert_channel)
