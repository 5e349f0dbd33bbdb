"""RWKV-4 against Transformers' values; see make_rwkv4.py."""

import jax.numpy as jnp
import pytest

from jaxeff.mixers.rwkv4 import RWKV4, RWKV4Channel
from tests.golden.published import agree, cases

CASES = cases("rwkv4")
SHORT = {"k": "key", "v": "value", "r": "receptance", "o": "output"}


def convert(w):
    """Arrays of the published layer by path -> our tree."""
    tree = {name: w[f"{long}/weight"].T for name, long in SHORT.items() if f"{long}/weight" in w}
    tree |= {f"mix_{name}": w[path][0, 0] for name, long in SHORT.items() if (path := f"time_mix_{long}") in w}
    return tree | {name: w[path] for name, path in (("decay", "time_decay"), ("bonus", "time_first")) if path in w}


def sums(state):
    """Numerator and denominator themselves."""
    return jnp.stack([state.wkv.num, state.wkv.den]) * jnp.exp(state.wkv.top)[None]


@pytest.mark.parametrize("name", CASES)
def test_rwkv4(name):
    make, state = (RWKV4, sums) if name.startswith("time") else (RWKV4Channel, None)
    agree(make(**CASES[name]["sizes"]), CASES[name], convert, state=state)
