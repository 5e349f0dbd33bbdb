"""The Mosaic kernel of the gated recurrence, interpreted here, against the reference in float32 on the same rounded numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxeff.core.sharding import make_mesh
from jaxeff.core.target import lowering_for
from jaxeff.ops.gated_linear import gated_linear, gated_linear_reference
from jaxeff.ops.pallas import gated_linear as kernel
from tests.closeness import assert_close

VALUES, GRADIENTS = 5e-3, 2e-2  # as in tests/ops/test_gated_linear.py
B, T, C = 1, 200, 128  # the second chunk ends within


def arrays(H=2, keys=1, E=64, T=T, seed=0):
    """The arrays of `gated_linear` by name; numbers that 16 bits hold."""
    r = np.random.default_rng(seed)
    shapes = dict(q=(B, T, keys, C), k=(B, T, keys, C), v=(B, T, H, E), state=(B, H, C, E))
    made = {name: jnp.asarray(r.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    made |= {name: made[name].astype(jnp.bfloat16) for name in "qkv"}
    return made | {"log_a": -jnp.asarray(r.uniform(0, 1, (B, T, H)), jnp.float32)}


def scales(H=2, T=T):
    r = np.random.default_rng(5)
    return {
        "gain": jnp.asarray(r.uniform(0, 2, (B, T, H)), jnp.float32),
        "skip": jnp.asarray(r.standard_normal(H), jnp.float32),
    }


def by_kernel(q, k, v, log_a, state, gain, skip, reset_BT):
    return kernel.by_kernel(q, k, v, log_a, reset_BT, state, gain, skip, interpret=True)


def by_scan(*arrays):
    *arrays, reset_BT = arrays
    *arrays, gain, skip = (x if x is None else x.astype(jnp.float32) for x in arrays)
    return gated_linear_reference(*arrays, reset_BT, gain_BTH=gain, skip_H=skip)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, a, reset_BT, weights):
    def scalar(a):
        o, s = form(*(a.get(name) for name in ("q", "k", "v", "log_a", "state", "gain", "skip")), reset_BT)
        return jnp.sum(o.astype(jnp.float32) * weights["v"].astype(jnp.float32)) + jnp.sum(s * weights["state"]), (o, s)

    (_, out), gradients = jax.value_and_grad(scalar, has_aux=True)(a)
    return dict(zip("os", out, strict=True)), gradients


def compare(a, reset_BT=None):
    (_, T, H, E) = a["v"].shape
    weights = arrays(H, 1, E, T, seed=1)
    fast, slow = (values_and_gradients(form, a, reset_BT, weights) for form in (by_kernel, by_scan))
    assert_close(fast[0], slow[0], VALUES)
    assert_close(fast[1], slow[1], GRADIENTS)


def resets_at(*places):
    return jnp.zeros((B, T), bool).at[:, list(places)].set(True)


# Heads that share q and k or have their own, of half a vector, of one and of two.
@pytest.mark.parametrize(("H", "keys", "E"), [(2, 1, 64), (3, 3, 64), (2, 1, 128), (1, 1, 256)])
def test_is_the_reference(H, keys, E):
    compare(arrays(H, keys, E))


@pytest.mark.parametrize("keys", [1, 2])
def test_with_resets(keys):
    compare(arrays(keys=keys), resets_at(0, 9, 127, 128, 140, 199))


def test_without_a_gate():
    a = arrays()
    del a["log_a"]
    compare(a)


@pytest.mark.parametrize("names", [("gain", "skip"), ("gain",), ("skip",)], ids=str)
def test_with_gains_and_skips(names):
    compare(arrays() | {name: scales()[name] for name in names}, resets_at(9))


@pytest.mark.parametrize("log_a", [-1e-3, -59.0, -jnp.inf])
def test_with_weak_strong_and_zero_gates(log_a):
    a = arrays()
    compare(a | {"log_a": a["log_a"].at[:, 5:140:3].set(log_a)}, resets_at(9))


def test_over_whole_chunks_of_strong_gates():
    a = arrays()
    compare(a | {"log_a": jnp.where(jnp.arange(T)[None, :, None] % 16 < 15, -30.0, a["log_a"])}, resets_at())


def test_several_steps_of_heads(monkeypatch):
    """The gradients of q and k are sums over the steps."""
    monkeypatch.setattr("jaxeff.ops.pallas.chunks.STEP", 128 * 64)
    jax.clear_caches()
    compare(arrays())


@pytest.mark.parametrize(("sizes", "keys"), [(dict(data=2, tensor=2), 1), (dict(sequence=2, tensor=2), 2)], ids=str)
def test_on_each_device(sizes, keys):
    """Rows and heads cut over devices, also within slices of the text; shared q and k get gradients from all."""
    mesh = make_mesh(**sizes)
    a = jax.tree.map(lambda *x: jnp.concatenate(x), arrays(keys=keys), arrays(keys=keys, seed=1))
    arguments = [a[name].astype(jnp.float32) for name in ("q", "k", "v", "log_a")]
    gain, skip = scales()["gain"].repeat(2, 0), scales()["skip"]
    state, reset_BT = a["state"], jnp.zeros((2, T), bool).at[:, [40, 130]].set(True)

    def rounded(form):
        return lambda q, k, v, *others: form(*(x.astype(jnp.bfloat16) for x in (q, k, v)), *others)

    whole = rounded(functools.partial(kernel.by_kernel, interpret=True))
    split = rounded(functools.partial(kernel.on_each_device, mesh=mesh, interpret=True))

    def within(*arguments):
        """Inside `shard_map` over the slices, of which each device here has a whole text."""
        one = PartitionSpec()
        run = jax.shard_map(split, mesh=mesh, in_specs=one, out_specs=one, axis_names={"sequence"}, check_vma=False)
        return run(*arguments)

    def of(form):
        def scalar(*x):
            *x, gain, skip = x
            out = form(*x, reset_BT, state, gain, skip)
            return sum(jnp.sum(jnp.sin(y.astype(jnp.float32))) for y in out), out

        (_, out), gradients = jax.jit(jax.value_and_grad(scalar, (0, 1, 2, 3, 4, 5), has_aux=True))(
            *arguments, gain, skip
        )
        return out, gradients

    expected, found = of(whole), of(within if "sequence" in sizes else split)
    assert_close(found[0], expected[0], 1e-5)
    assert_close(found[1], expected[1], 4e-3, "gradients of shared q and k are rounded on each device")


def test_the_op_takes_it_on_a_tpu(monkeypatch):
    calls = []

    def spy(q, k, v, log_a, reset_BT, state, gain, skip, interpret):
        calls.append(1)
        return v, state

    monkeypatch.setattr(kernel, "by_kernel", spy)
    for length, keys, name, expected in [
        (128, 1, "tpu", 1), (128, 4, "tpu", 1), (128, 2, "tpu", 0), (127, 1, "tpu", 0), (128, 1, "gpu", 0), (128, 1, "cpu", 0)
    ]:  # fmt: skip
        a = arrays(4, keys, T=length)
        calls.clear()
        with lowering_for(name):
            jax.eval_shape(lambda a: gated_linear(*(a[n] for n in ("q", "k", "v", "log_a", "state"))), a)
        assert len(calls) == expected


def test_says_what_it_cannot_serve():
    a = arrays(T=128)
    assert kernel.why_not(a["q"], a["v"], a["log_a"]) is None
    assert kernel.why_not(a["q"], a["v"].astype(jnp.float32), None) is None  # values are rounded, as in any form
    assert "multiple of 128" in kernel.why_not(a["q"][..., :64], a["v"], None)
    assert "multiple of 128" in kernel.why_not(a["q"], a["v"][..., :32], None)
    assert "128 tokens" in kernel.why_not(a["q"][:, :5], a["v"][:, :5], None)
    assert "bfloat16" in kernel.why_not(a["q"].astype(jnp.float32), a["v"], None)
    assert "one gate" in kernel.why_not(a["q"], a["v"], a["log_a"][..., None])
