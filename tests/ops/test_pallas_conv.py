"""The Mosaic kernel of the short convolution, interpreted here, against the reference in float32 on the same rounded numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxeff.core.sharding import make_mesh
from jaxeff.core.target import lowering_for
from jaxeff.ops.conv import causal_conv, causal_conv_reference
from jaxeff.ops.pallas import conv as kernel
from tests.closeness import assert_close

# One rounding to 16 bits at the end, of y and of dx: 2^-9 at most, some 2^-9.5 in rms. The sums of w and bias stay float32.
ROUNDED, SUMS = 2**-9, 1e-5
B, D = 2, 256


def arrays(T=200, W=4, seed=0, bias=True, taps=False):
    """The arrays of `causal_conv` by name, numbers that 16 bits hold where it has 16 bits."""
    r = np.random.default_rng(seed)
    shapes = dict(x_BTD=(B, T, D), w_WD=(W, D), bias_D=(D,), taps_BWD=(B, W - 1, D))
    types = dict(x_BTD=jnp.bfloat16, taps_BWD=jnp.bfloat16)
    made = {name: jnp.asarray(r.standard_normal(s), types.get(name, jnp.float32)) for name, s in shapes.items()}
    given = dict(bias_D=bias, taps_BWD=taps)
    return {name: x for name, x in made.items() if given.get(name, True)}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    """Programs for a TPU that this machine can run; several blocks of time and of channels in small arrays."""
    monkeypatch.setattr(kernel, "by_kernel", functools.partial(kernel.by_kernel, interpret=True))
    monkeypatch.setattr(kernel, "TOKENS", 128)
    monkeypatch.setattr(kernel, "CHANNELS", 128)


def values_and_gradients(form, a, m, **options):
    T, W = a["x_BTD"].shape[1], a["w_WD"].shape[0]
    weights = {name: x.astype(jnp.float32) for name, x in arrays(T, W, seed=1, taps=True).items()}

    def scalar(a):
        y_BTD, taps = form(**a, **m, **options)
        y_BTD = jnp.where(m["valid_BT"][:, :, None], y_BTD, 0) if "valid_BT" in m else y_BTD
        total = jnp.sum(y_BTD.astype(jnp.float32) * weights["x_BTD"])
        return total + jnp.sum(taps.astype(jnp.float32) * weights["taps_BWD"]), (y_BTD, taps)

    (_, out), gradients = jax.jit(jax.value_and_grad(scalar, has_aux=True))(a)
    return dict(zip(("y", "taps"), out, strict=True)), gradients


def compare(a, m, activation=jax.nn.silu, form=causal_conv, **spread):
    options = dict(activation=activation)
    with lowering_for("tpu"):
        assert "pallas_call" in str(jax.make_jaxpr(functools.partial(form, **options, **spread))(**a, **m))
        found = values_and_gradients(form, a, m, **options, **spread)
    wide = {name: x.astype(jnp.float32) for name, x in a.items()}
    expected = values_and_gradients(causal_conv_reference, wide, m, **options)
    sums = [{name: x for name, x in gradients.items() if x.ndim < 3} for _, gradients in (found, expected)]
    assert_close(*sums, SUMS)
    assert_close(found, expected, ROUNDED)


def starts(T, *places):
    return jnp.zeros((B, T), bool).at[:, list(places)].set(True).at[1, 5].set(True)


def padding(T):
    return jnp.arange(T)[None] >= jnp.asarray([[0], [3]])


@pytest.mark.parametrize(("W", "silu", "bias"), [(4, True, True), (4, True, False), (4, False, True), (2, True, False)])
def test_is_the_reference(W, silu, bias):
    compare(arrays(W=W, bias=bias), {}, jax.nn.silu if silu else None)


@pytest.mark.parametrize("T", [128, 391])
def test_at_every_length(T):
    compare(arrays(T), dict(start_BT=starts(T, 0, 100, 127)))


@pytest.mark.parametrize(("W", "started"), [(2, True), (4, True), (4, False)])
def test_with_taps(W, started):
    compare(arrays(W=W, taps=True), dict(start_BT=starts(200, 2, 9, 10, 103, 104, 106, 199)) if started else {})


def test_with_padding():
    """Of which nothing enters, not even NaN."""
    valid_BT = padding(200) & (jnp.arange(200) < 190)[None]
    m = dict(valid_BT=valid_BT, start_BT=starts(200, 1, 105))
    a = arrays()
    compare(a | dict(x_BTD=jnp.where(valid_BT[:, :, None], a["x_BTD"], jnp.nan)), m)


@pytest.mark.parametrize("masked", [False, True])
def test_on_each_device(masked):
    """Rows and channels cut over devices."""
    m = dict(start_BT=starts(200, 9, 103)) if masked else {}
    spread = dict(mesh=make_mesh(data=2, tensor=2), axis="heads")
    compare(arrays(taps=masked), m, **spread)


def test_within_slices_of_the_text():
    """The taps of a slice are the last inputs of the one before it."""
    mesh, whole, text = make_mesh(sequence=2, tensor=2), PartitionSpec(), PartitionSpec(None, "sequence")

    def sliced(x_BTD, w_WD, bias_D, **options):
        run = lambda *arrays: causal_conv(*arrays, mesh=mesh, axis="heads", **options)[0]
        specs = dict(in_specs=(text, whole, whole), out_specs=text, axis_names={"sequence"}, check_vma=False)
        # A CPU's compiler has no sum of 16-bit numbers over devices, which would tell all of them the final taps.
        return jax.shard_map(run, mesh=mesh, **specs)(x_BTD, w_WD, bias_D), x_BTD[:, -3:]

    compare(arrays(256), {}, form=sliced)


def test_carried_taps_with_padding_are_left_to_the_plain_form():
    a, m = arrays(taps=True), dict(valid_BT=padding(200))
    with lowering_for("tpu"):
        assert "pallas_call" not in str(jax.make_jaxpr(causal_conv)(**a, **m))


def test_says_what_it_cannot_serve():
    a = arrays(128)
    x_BTD, w_WD = a["x_BTD"], a["w_WD"]
    assert kernel.why_not(x_BTD, w_WD, None) is None
    assert "bfloat16" in kernel.why_not(x_BTD.astype(jnp.float32), w_WD, None)
    assert "activation" in kernel.why_not(x_BTD, w_WD, jax.nn.gelu)
    assert "width" in kernel.why_not(x_BTD, jnp.zeros((8, D)), None)
    assert "128 tokens" in kernel.why_not(x_BTD[:, :127], w_WD, None)
    assert "multiple of 128" in kernel.why_not(x_BTD, w_WD, None, make_mesh(tensor=4), axis="heads")
