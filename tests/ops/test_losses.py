"""Cross entropy in chunks against the plain form. B batch, T time, D model, V vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.target import lowering_for
from jaxeff.core.weight import Weight
from jaxeff.ops.losses import cross_entropy, cross_entropy_reference
from tests.closeness import assert_close

B, T, D, V = 2, 11, 8, 23
CASES = {
    "plain": dict(),
    "z-loss": dict(z_loss=0.1),
    "smoothing": dict(label_smoothing=0.2),
    "softcap": dict(softcap=1.5),
    "all": dict(z_loss=0.03, label_smoothing=0.1, softcap=3.0),
}


def arrays(seed=0, dtype=jnp.float32):
    """(x, head, targets, mask)."""
    rng = np.random.default_rng(seed)
    x, head = rng.normal(size=(B, T, D)), rng.normal(size=(V, D))
    mask = rng.random((B, T)) * (rng.random((B, T)) > 0.3)
    return (
        jnp.asarray(x, dtype), jnp.asarray(head, dtype), jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32),
        jnp.asarray(mask, jnp.float32),
    )  # fmt: skip


def plain(x, head, targets, mask, **options):
    return cross_entropy_reference(jnp.einsum("btd,vd->btv", x, head), targets, mask, **options)


def with_gradients(f, x, head, targets, mask, **options):
    """(3 times the sum, and its gradients with respect to hidden states, head and mask)."""
    g = jax.value_and_grad(lambda x, head, mask: 3 * f(x, head, targets, mask, **options), (0, 1, 2))
    value, (dx, dhead, dmask) = jax.jit(g)(x, head, mask)
    return dict(value=value, x=dx, head=dhead, mask=dmask)


@pytest.mark.parametrize("chunk", [None, 1, 4, 11, 100])
@pytest.mark.parametrize("name", CASES)
def test_chunks_are_reference(name, chunk):
    options = CASES[name]
    actual = with_gradients(lambda *a, **o: cross_entropy(*a, chunk=chunk, **o)[0], *arrays(), **options)
    assert_close(actual, with_gradients(plain, *arrays(), **options), 1e-5, name)
    undifferentiated = cross_entropy(*arrays(), chunk=chunk, **options)[0]
    assert_close(undifferentiated, actual["value"] / 3, 1e-6)


def test_aux_is_the_plain_likelihood():
    loss, aux = cross_entropy(*arrays(), z_loss=0.1, label_smoothing=0.3)
    assert_close(aux["nll_sum"], plain(*arrays()), 1e-6)
    assert_close(aux["n_targets"], jnp.sum(arrays()[3]), 1e-6)
    assert loss != aux["nll_sum"]
    # The aux is a report: it moves nothing.
    x, head, targets, mask = arrays()
    assert np.all(jax.grad(lambda x: cross_entropy(x, head, targets, mask)[1]["nll_sum"])(x) == 0)


def test_masked_tokens_get_no_gradient():
    x, head, targets, mask = arrays()
    dx = jax.grad(lambda x: cross_entropy(x, head, targets, mask, chunk=3)[0])(x)
    assert np.all(np.asarray(dx)[np.asarray(mask) == 0] == 0)


def test_bfloat16():
    """Logits are summed in float32 from 16-bit operands; dz is rounded: about 0.5 % a tensor."""
    actual = with_gradients(lambda *a: cross_entropy(*a, chunk=4)[0], *arrays(dtype=jnp.bfloat16))
    assert actual["x"].dtype == actual["head"].dtype == jnp.bfloat16 and actual["value"].dtype == jnp.float32
    assert_close(actual, with_gradients(plain, *arrays()), 1.5e-2)


def test_float32_head_keeps_its_gradient():
    """Master weights beside 16-bit activations: the head's gradient is not rounded to 16 bits."""
    x, _, targets, mask = arrays(dtype=jnp.bfloat16)
    head = arrays()[1]
    gradient = jax.grad(lambda head: cross_entropy(x, head, targets, mask)[0])(head)
    assert gradient.dtype == jnp.float32
    assert np.any(np.asarray(gradient) != np.asarray(gradient.astype(jnp.bfloat16).astype(jnp.float32)))


def test_large_logits_stay_finite():
    x, head, targets, mask = arrays()
    got = with_gradients(lambda *a: cross_entropy(*a)[0], 1e4 * x, head, targets, mask)
    assert all(np.all(np.isfinite(value)) for value in got.values())


def test_weight_node():
    @jax.tree_util.register_pytree_node_class
    class Halves(Weight):
        """A matrix kept as two halves of its sum."""

        def __init__(self, a, b):
            self.a, self.b = a, b

        def tree_flatten(self):
            return (self.a, self.b), None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(*leaves)

        def dense(self, dtype):
            return (self.a + self.b).astype(dtype)

        def einsum(self, eqn, x):
            return jnp.einsum(eqn, x, self.dense(x.dtype))

        def take(self, ids, dtype):
            return self.dense(dtype)[ids]

    x, head, targets, mask = arrays()
    node = Halves(0.25 * head, 0.75 * head)
    value, grad = jax.value_and_grad(lambda w: cross_entropy(x, w, targets, mask)[0])(node)
    expected, dhead = jax.value_and_grad(lambda w: plain(x, w, targets, mask))(head)
    assert_close(dict(value=value, a=grad.a, b=grad.b), dict(value=expected, a=dhead, b=dhead), 1e-5)


@pytest.mark.shipped
@pytest.mark.parametrize("chunk", [None, 4, 2])
@pytest.mark.parametrize("axes", ["vd", "dv"])
def test_away_from_cpus_the_head_gets_its_gradient_at_once(chunk, axes):
    """One, a few and many chunks: the same numbers, the head's gradient of a few with one rounding to x's type."""
    x, head, targets, mask = arrays(dtype=jnp.bfloat16)
    head = (head if axes == "vd" else head.T).astype(jnp.float32)

    def run(*a):
        with lowering_for("any"):
            return cross_entropy(*a, axes=axes, chunk=chunk)[0]

    expected = with_gradients(lambda *a: cross_entropy(*a, axes=axes, chunk=chunk)[0], x, head, targets, mask)
    actual = with_gradients(run, x, head, targets, mask)
    assert_close(actual, expected, 2**-8)
    assert actual["head"].dtype == jnp.float32


def test_never_holds_all_logits():
    b, t, d, v = 4, 512, 16, 16_384
    shapes = [((b, t, d), jnp.float32), ((v, d), jnp.float32), ((b, t), jnp.int32), ((b, t), jnp.float32)]
    arguments = [jax.ShapeDtypeStruct(*s) for s in shapes]
    g = jax.grad(lambda *a: cross_entropy(*a)[0], (0, 1))
    assert jax.jit(g).lower(*arguments).compile().memory_analysis().temp_size_in_bytes < b * t * v * 4 / 3


@pytest.mark.shipped
def test_sharded_is_unsharded():
    """Rows over one axis, the vocabulary over the other."""
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x, head, targets, mask = arrays()
    head = jnp.concatenate([head, head[:1]])
    expected = with_gradients(lambda *a: cross_entropy(*a, chunk=4)[0], x, head, targets, mask)
    put = lambda a, *axes: jax.device_put(a, jax.NamedSharding(mesh, jax.P(*axes)))  # noqa: E731
    x, targets, mask = put(x, "data"), put(targets, "data"), put(mask, "data")
    head = put(head, "tensor")
    assert_close(with_gradients(lambda *a: cross_entropy(*a, chunk=4)[0], x, head, targets, mask), expected, 1e-6)


def test_errors():
    x, head, targets, mask = arrays()
    with pytest.raises(ValueError, match=r"targets \(2, 10\)"):
        cross_entropy(x, head, targets[:, 1:], mask)
    with pytest.raises(ValueError, match=r"a head of shape \(8, 23\)"):
        cross_entropy(x, head.T, targets, mask)


def test_correct_is_the_weight_of_the_tokens_whose_target_is_the_likeliest():
    x, head, targets, mask = arrays()
    z = np.einsum("btd,vd->btv", np.asarray(x, np.float64), head)
    targets = jnp.where(jnp.arange(T)[None] % 2 == 0, jnp.asarray(z.argmax(-1), jnp.int32), targets)
    right = z.argmax(-1) == np.asarray(targets)
    _, aux = cross_entropy(x, head, targets, mask, chunk=4)
    assert_close(aux["correct_sum"], np.sum(right * np.asarray(mask)), 1e-6)
    assert 0 < aux["correct_sum"] < aux["n_targets"]


def test_a_head_with_its_inputs_first_is_the_same_head():
    f = lambda axes: lambda x, head, targets, mask: cross_entropy(x, head, targets, mask, axes=axes, chunk=4)[0]
    x, head, targets, mask = arrays()
    first = with_gradients(f("vd"), x, head, targets, mask)
    second = with_gradients(f("dv"), x, head.T, targets, mask)
    assert_close(second | {"head": second["head"].T}, first, 1e-6)
