"""The Mosaic kernel of the loss of tokens, interpreted here, against the plain loss of logits that are all there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxeff.core.sharding import make_mesh
from jaxeff.core.target import lowering_for
from jaxeff.ops.losses import cross_entropy, cross_entropy_reference
from jaxeff.ops.pallas import token_loss as kernel
from tests.closeness import assert_close

# Gradients of logits are rounded to 16 bits, dx and those of a chunk's part of the head once more.
ROUNDED = 2**-8
B, T, D, V = 2, 64, 32, 9 * 128  # a turn of 8 times 128 logits, and a rest
TERMS = dict(z_loss=0.03, label_smoothing=0.1, softcap=3.0)


def arrays():
    """(x, head, targets, mask), of x and head numbers that 16 bits hold."""
    r = np.random.default_rng(0)
    x, head = r.standard_normal((B, T, D)), r.standard_normal((V, D)) / 2
    mask = r.random((B, T)) * (r.random((B, T)) > 0.3)
    head = jnp.asarray(head, jnp.bfloat16).astype(jnp.float32)
    return (
        jnp.asarray(x, jnp.bfloat16),
        head,
        jnp.asarray(r.integers(0, V, (B, T)), jnp.int32),
        jnp.asarray(mask, jnp.float32),
    )


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    """Programs for a TPU that this machine can run."""
    monkeypatch.setattr(kernel, "by_kernel", functools.partial(kernel.by_kernel, interpret=True))


def with_gradients(f, x, head, targets, mask):
    """3 times the sum, and its gradients."""
    g = jax.value_and_grad(lambda x, head, mask: 3 * f(x, head, targets, mask), (0, 1, 2))
    value, (dx, dhead, dmask) = jax.jit(g)(x, head, mask)
    return dict(value=value, x=dx, head=dhead, mask=dmask)


def compare(arrays, spread=None, kernels=True, **options):
    x, head, targets, mask = arrays
    plain = {name: value for name, value in options.items() if name in TERMS}
    reference = lambda x, head, *a: cross_entropy_reference(jnp.einsum("btd,vd->btv", x, head), *a, **plain)  # noqa: E731
    expected = with_gradients(reference, x.astype(jnp.float32), head, targets, mask)
    with lowering_for("tpu"):
        f = lambda *a: cross_entropy(*a, mesh=spread, **options)[0]  # noqa: E731
        assert ("pallas_call" in str(jax.make_jaxpr(jax.grad(f))(*arrays))) == kernels
        found = with_gradients(f, *arrays)
    assert found["head"].dtype == jnp.float32 and found["x"].dtype == jnp.bfloat16
    assert_close({n: found.pop(n) for n in ("value", "mask")}, {n: expected.pop(n) for n in ("value", "mask")}, 1e-5)
    assert_close(found, expected, ROUNDED)


@pytest.mark.parametrize("terms", [{}, *({name: value} for name, value in TERMS.items()), TERMS], ids=str)
def test_is_the_plain_loss(terms):
    compare(arrays(), **terms)


@pytest.mark.parametrize("chunk", [32, 16])
def test_chunks(chunk):
    compare(arrays(), chunk=chunk, z_loss=0.1)


def test_a_large_head(monkeypatch):
    """One product of all chunks, in place of one of each."""
    monkeypatch.setattr("jaxeff.ops.losses.SMALL", 1)
    compare(arrays(), chunk=32)


def test_what_is_told():
    x, head, targets, mask = arrays()
    z = jnp.einsum("btd,vd->btv", x.astype(jnp.float32), head)
    targets = jnp.where(jnp.arange(T)[None] % 2 == 0, jnp.argmax(z, axis=-1), targets)
    f = lambda x: cross_entropy(x, head, targets, mask, chunk=32, z_loss=0.1)  # noqa: E731
    with lowering_for("tpu"):
        told = jax.jit(jax.value_and_grad(f, has_aux=True))(x)[0][1]
    assert_close(told["nll_sum"], cross_entropy_reference(z, targets, mask), 1e-5)
    assert_close(told["correct_sum"], jnp.sum(jnp.where(jnp.argmax(z, axis=-1) == targets, mask, 0)), 1e-6)


@pytest.mark.parametrize("sizes", [dict(data=2), dict(data=2, sequence=2), dict(data=2, tensor=2)], ids=str)
def test_on_each_device(sizes):
    """Rows and time cut over devices; a vocabulary that is cut is left to the plain form."""
    mesh = make_mesh(**sizes)
    spread = ("data", "sequence"), ("tensor",), ("data", "sequence"), ("data", "sequence")
    put = lambda a, axes: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))  # noqa: E731
    compare(tuple(map(put, arrays(), spread)), mesh, kernels="tensor" not in sizes, chunk=32)


def test_says_what_it_cannot_serve():
    assert kernel.why_not((B, T, V), jnp.bfloat16) is None
    assert "bfloat16" in kernel.why_not((B, T, V), jnp.float32)
    assert "multiple of 128" in kernel.why_not((B, T, 100), jnp.bfloat16)
    assert "multiple of 16" in kernel.why_not((B, 40, V), jnp.bfloat16)
    assert "whole vocabulary" in kernel.why_not((B, T, V), jnp.bfloat16, make_mesh(tensor=2))
