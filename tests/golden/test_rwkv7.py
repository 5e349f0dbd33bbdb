"""RWKV-7 against published code; see make_rwkv7.py."""

import jax.numpy as jnp
import pytest

from jaxeff.mixers.base import Ctx, Shared
from jaxeff.mixers.rwkv7 import RWKV7, RWKV7Channel
from tests.golden.published import agree, cases

CASES = cases("rwkv7")


def converter(m):
    """Weights by our names, heads and channels in two axes."""
    d, h, c = m.d_model, m.heads, m.head

    def reshaped(name, x):
        if name.startswith("x_") or name.endswith("_low"):
            return x
        if name == "o":
            return x.reshape(h, c, d)
        return x.reshape(*x.shape[:-1], h, c)

    def convert(w):
        tree = {name: reshaped(name, x) for name, x in w.items() if not name.startswith("norm")}
        tree = {name.replace("x_", "shift_"): x for name, x in tree.items()}
        return tree | {"norm": {"scale": w["norm/weight"].reshape(h, c), "bias": w["norm/bias"].reshape(h, c)}}

    return convert


@pytest.mark.parametrize("name", CASES)
def test_rwkv7(name):
    case = CASES[name]
    if "channel" in name:
        rename = lambda w: {"shift_k": w["x_k"], "k": w["k"], "v": w["v"]}
        return agree(RWKV7Channel(**case["sizes"]), case, rename)
    mixer = RWKV7(**case["sizes"] | {"ranks": tuple(case["sizes"]["ranks"])})
    v_first = jnp.asarray(case["v_first"]).reshape(*case["v_first"].shape[:2], mixer.heads, mixer.head)
    ctx = Ctx(shared=Shared({"v_first": v_first} if mixer.value_residual else {}))
    return agree(mixer, case, converter(mixer), ctx, state=lambda s: s.S)
