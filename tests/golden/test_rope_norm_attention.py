"""Rotary embedding, norms and attention against values that published code computed; see make_rope_norm_attention.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.mixers import GQA
from jaxeff.ops.attention import attention
from jaxeff.ops.norm import layer_norm, rms_norm
from jaxeff.ops.rope import Linear, Llama3, Rope, Yarn, cos_sin, rope
from tests.closeness import assert_close
from tests.golden.published import FOLDER

with np.load(FOLDER / "rope_norm_attention.npz") as file:
    GOLDEN = {name: jnp.asarray(file[name]) for name in file.files if name != "versions"}

ROPES = {
    "default": Rope(),
    "base": Rope(base=500000.0),
    "linear": Rope(scaling=Linear(4.0)),
    "llama3": Rope(scaling=Llama3(8.0, 1.0, 4.0, 128)),
    "yarn": Rope(scaling=Yarn(4.0, 128)),
    "yarn_attention_factor": Rope(scaling=Yarn(4.0, 128, beta_fast=16.0, beta_slow=2.0, attention_factor=0.75)),
    "yarn_exact": Rope(scaling=Yarn(4.0, 128, truncate=False)),
    "neox_quarter": Rope(fraction=0.25),
    "phi_half": Rope(fraction=0.5),
}


def test_every_golden_rope_is_compared():
    assert {name.split("/")[1] for name in GOLDEN if name.startswith("rope/") and name.count("/") == 2} == set(ROPES)


@pytest.mark.parametrize("name", ROPES)
def test_rope(name):
    q, positions = GOLDEN["rope/q"], GOLDEN["rope/positions"]
    expected = {part: GOLDEN[f"rope/{name}/{part}"] for part in ("cos", "sin", "rotated")}
    cos, sin = cos_sin(positions, q.shape[-1], ROPES[name])
    assert_close({"cos": cos, "sin": sin, "rotated": rope(q, positions, ROPES[name])}, expected, 1e-5)


def test_norms():
    x, scale, bias = (GOLDEN[f"norm/{name}"] for name in ("x", "scale", "bias"))
    assert_close(rms_norm(x, scale, eps=1e-3), GOLDEN["norm/rms"], 1e-6)
    assert_close(layer_norm(x, scale, bias, eps=1e-3), GOLDEN["norm/layer"], 1e-6)


def weights(name):
    """The layer's parameters as `GQA` names and shapes them: inputs first, heads apart."""
    heads = {"q": 4, "k": 2, "v": 2}
    get = lambda path: GOLDEN[f"attention/{name}/{path}"]
    params = {n: get(f"{n}_proj/weight").T.reshape(32, h, 8) for n, h in heads.items()}
    params["o"] = get("o_proj/weight").T.reshape(4, 8, 32)
    if f"attention/{name}/q_proj/bias" in GOLDEN:
        params |= {f"{n}_bias": get(f"{n}_proj/bias").reshape(h, 8) for n, h in heads.items()}
        params["o_bias"] = get("o_proj/bias")
    return params


@pytest.mark.parametrize("impl", ["reference", "block"])
def test_llama_attention(impl):
    mixer = GQA(32, n_heads=4, n_kv_heads=2, head_dim=8, biases=("q", "k", "v", "o"), impl=impl)
    y, *_ = mixer.apply(weights("llama"), GOLDEN["attention/x"])
    assert_close(y, GOLDEN["attention/llama/y"], 1e-5)


@pytest.mark.parametrize("impl", ["reference", "block"])
@pytest.mark.parametrize(("name", "window"), [("gemma2_global", None), ("gemma2_window", (4, 0))])
def test_gemma2_attention(name, window, impl):
    params, x = weights(name), GOLDEN["attention/x"]
    q, k, v = (jnp.einsum("btd,dhc->bthc", x, params[n]) for n in "qkv")
    positions = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    q, k = rope(q, positions, Rope()), rope(k, positions, Rope())
    o = attention(q, k, v, window=window, scale=4**-0.5, softcap=2.0, impl=impl)
    assert_close(jnp.einsum("bthc,hcd->btd", o, params["o"]), GOLDEN[f"attention/{name}/y"], 1e-5)
