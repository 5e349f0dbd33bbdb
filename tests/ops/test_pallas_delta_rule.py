"""The Mosaic kernel of the delta rule, interpreted here, against the reference in float32 on the same rounded numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxeff.core.sharding import make_mesh
from jaxeff.core.target import lowering_for
from jaxeff.ops.delta_rule import delta_rule, delta_rule_reference
from jaxeff.ops.delta_sums import by_sums
from jaxeff.ops.pallas import delta_rule as kernel
from tests.closeness import assert_close

NAMES = ("q", "k", "v", "u", "w")
VALUES, GRADIENTS = 1.2e-2, 2.4e-2  # as in tests/ops/test_delta_sums.py
B, T, C, E = 1, 200, 128, 128  # the second chunk ends within


def arrays(T=T, H=2, seed=0, negative=False):
    """The arrays of `delta_rule` by name; numbers that 16 bits hold."""
    r = np.random.default_rng(seed)
    q, k = r.standard_normal((2, B, T, H, C))
    v, state = r.standard_normal((B, T, H, E)), r.standard_normal((B, H, C, E))
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    beta = r.uniform(0, 2 if negative else 1, (B, T, H, 1))
    made = dict(q=q, k=beta * k, v=v, u=-beta * k, w=k)
    wide = dict(log_a=-r.uniform(0, 1, (B, T, H)), state=state)
    made = {name: jnp.asarray(x, jnp.bfloat16) for name, x in made.items()}
    return made | {name: jnp.asarray(x, jnp.float32) for name, x in wide.items()}


def by_kernel(*arrays, reset_BT=None):
    *arrays, log_a, state = arrays
    return kernel.by_kernel(*arrays, log_a, reset_BT, state, interpret=True)


def by_scan(*arrays, reset_BT=None):
    return delta_rule_reference(*(x if x is None else x.astype(jnp.float32) for x in arrays), reset_BT)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, a, reset_BT, weights):
    def scalar(a):
        o, s = form(*(a.get(name) for name in (*NAMES, "log_a", "state")), reset_BT=reset_BT)
        return jnp.sum(o * weights["v"].astype(jnp.float32)) + jnp.sum(s * weights["state"]), (o, s)

    (_, out), gradients = jax.value_and_grad(scalar, has_aux=True)(a)
    return dict(zip("os", out, strict=True)), gradients


def compare(a, reset_BT=None):
    fast, slow = (values_and_gradients(form, a, reset_BT, arrays(seed=1)) for form in (by_kernel, by_scan))
    assert_close(fast[0], slow[0], VALUES)
    assert_close(fast[1], slow[1], GRADIENTS)


def resets_at(*places):
    return jnp.zeros((B, T), bool).at[:, list(places)].set(True)


def test_is_the_reference():
    compare(arrays())


def test_with_resets():
    compare(arrays(), resets_at(0, 9, 127, 128, 140, 199))


def test_without_a_gate():
    a = arrays(negative=True)
    del a["log_a"]
    compare(a, resets_at(140))


@pytest.mark.parametrize("log_a", [-1e-3, -59.0, -jnp.inf])
def test_with_weak_strong_and_zero_gates(log_a):
    a = arrays()
    compare(a | {"log_a": a["log_a"].at[:, 5:140:3].set(log_a)}, resets_at(9))


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_the_inverse_keeps_its_digits(noise):
    """Keys that are all alike and beta = 2 make a triangle of twos, whose powers reach 1e37."""
    r = np.random.default_rng(0)
    k = 1 + noise * r.standard_normal((128, 128))
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    beta = r.uniform(0 if noise else 2, 2, (128, 1))
    A = np.tril(-beta * k @ k.T, -1).astype(np.float32)
    assert_close(kernel._inverse(jnp.asarray(A)), np.linalg.inv(np.eye(128) - A.astype(np.float64)), 1e-4)


@pytest.mark.parametrize("sizes", [dict(data=2, tensor=2), dict(sequence=2, tensor=2)], ids=str)
def test_on_each_device(sizes):
    """Rows and heads cut over devices, also within slices of the text."""
    mesh = make_mesh(**sizes)
    a = jax.tree.map(lambda *x: jnp.concatenate(x), arrays(), arrays(seed=1))
    arguments = [a[name] for name in (*NAMES, "log_a")]
    state, reset_BT = a["state"], jnp.zeros((2, T), bool).at[:, [40, 130]].set(True)
    expected = jax.jit(kernel.by_kernel, static_argnames="interpret")(*arguments, reset_BT, state, interpret=True)
    split = functools.partial(kernel.on_each_device, mesh=mesh, interpret=True)

    def within(*arguments):
        """Inside `shard_map` over the slices, of which each device here has a whole text."""
        one = PartitionSpec()
        run = jax.shard_map(split, mesh=mesh, in_specs=one, out_specs=one, axis_names={"sequence"}, check_vma=False)
        return run(*arguments)

    found = jax.jit(within if "sequence" in sizes else split)(*arguments, reset_BT, state)
    assert_close(found, expected, 1e-5)


def test_the_op_takes_it_on_a_tpu(monkeypatch):
    calls = []
    monkeypatch.setattr(kernel, "by_kernel", lambda *a, **options: calls.append(1) or by_sums(*a, size=128))
    for length, name, expected in [(128, "tpu", 1), (127, "tpu", 0), (128, "gpu", 0), (128, "cpu", 0)]:
        a = arrays(length, 1)
        calls.clear()
        with lowering_for(name):
            jax.eval_shape(lambda a: delta_rule(*(a[n] for n in (*NAMES, "log_a", "state"))), a)
        assert len(calls) == expected


def test_says_what_it_cannot_serve():
    a = arrays(128, 1)
    assert kernel.why_not(a["q"], a["v"], a["log_a"]) is None
    assert "multiple of 128" in kernel.why_not(a["q"][..., :64], a["v"], None)
    assert "128 tokens" in kernel.why_not(a["q"][:, :5], a["v"][:, :5], None)
    wide = jnp.zeros((1, 128, 1, 1024), jnp.bfloat16)
    assert "1024 x 1024" in kernel.why_not(wide, wide, None)
    assert "bfloat16" in kernel.why_not(a["q"], a["v"].astype(jnp.float32), None)
    assert "one gate" in kernel.why_not(a["q"], a["v"], a["log_a"][..., None])
