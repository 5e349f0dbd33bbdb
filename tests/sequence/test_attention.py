"""Attention of a text cut into four slices against the same on one device. B batch, T time, H heads, K kv heads, C channels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core import sequence
from jaxeff.core.sharding import make_mesh
from jaxeff.ops.attention import attention_with_lse
from jaxeff.ops.attention_slices import _unzigzag, _zigzag, attention_slices
from tests.closeness import assert_close

SLICES, B, H, K, C = 4, 2, 4, 2, 8
TEXT = jax.P(None, sequence.AXIS)

OPTIONS = {
    "causal": dict(),
    "full": dict(causal=False),
    "softcap": dict(softcap=1.5, scale=0.7),
    "within a slice": dict(window=(5, 0)),
    "a slice": dict(window=(22, 0)),
    "two slices": dict(window=(25, 0), softcap=1.5),
    "itself": dict(window=(0, 0)),
    "beyond the text": dict(window=(1000, 0)),
    "to both sides": dict(window=(7, 30), causal=False),
    "to all sides": dict(window=(50, 60), causal=False),
    "ahead": dict(window=(0, 24), causal=False),
    "back, not causal": dict(window=(30, 0), causal=False),
}


def arrays(t, dtype=jnp.float32):
    """(q, k, v, do) of standard normal numbers."""
    shapes = ((B, t, H, C), (B, t, K, C), (B, t, K, C), (B, t, H, C))
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def segments(t) -> jax.Array:
    """Texts that end within a slice and go through several; padding within, at the end, and of a whole slice."""
    ids = np.ones((B, t), np.int32)
    ids[0, t // 3 :] = 2
    ids[0, t - 3 :] = 0
    ids[1, t // 2 :] = 0
    ids[1, 4:6] = 0
    return jnp.asarray(ids)


def slices(function, mesh=None):
    """`function` of slices as one of texts."""
    mesh = make_mesh(sequence=SLICES) if mesh is None else mesh
    return jax.shard_map(
        function, mesh=mesh, in_specs=TEXT, out_specs=TEXT, axis_names={sequence.AXIS}, check_vma=False
    )


def with_gradients(function, q, k, v, do, ids):
    """{"o", "lse", "q", "k", "v"}: both outputs and the gradients of sum(o * do) + sum(lse * dlse). lse = -inf shows as 99."""

    @jax.jit
    def run(q, k, v, do, ids):
        (o, lse), pull = jax.vjp(lambda *x: function(*x, ids), q, k, v)
        dlse = jnp.cos(3 * do[..., 0].astype(jnp.float32))
        return dict(zip("qkv", pull((do, dlse)), strict=True)) | dict(o=o, lse=jnp.where(lse == -jnp.inf, 99.0, lse))

    return run(q, k, v, do, ids)


def on_one(options):
    return lambda q, k, v, ids: attention_with_lse(q, k, v, segment_ids_BT=ids, impl="reference", **options)


def in_slices(options, context, mesh=None):
    return slices(lambda q, k, v, ids: attention_slices(q, k, v, segment_ids_BT=ids, context=context, **options), mesh)


@pytest.mark.parametrize("name", OPTIONS)
def test_slices_are_the_text(name):
    """Each mask in both contexts; of even length with texts, which a causal ring cuts into halves, and of odd length."""
    number = [*OPTIONS].index(name)
    t, ids = (92, None) if number % 2 else (88, segments(88))
    expected = with_gradients(on_one(OPTIONS[name]), *arrays(t), ids)
    for context in ("ring", "gather"):
        found = with_gradients(in_slices(OPTIONS[name], context), *arrays(t), ids)
        assert_close(found, expected, 1e-5, f"{name}, T={t}, {context}")


# With the test above: a causal ring of even and odd length, and windows within a slice and over several, with texts and without.
@pytest.mark.parametrize(
    "name, t, texts, context",
    [
        ("causal", 88, False, "ring"),
        ("causal", 92, True, "ring"),
        ("causal", 92, True, "gather"),
        ("full", 88, True, "ring"),
        ("within a slice", 88, True, "ring"),
        ("a slice", 92, False, "gather"),
        ("two slices", 88, False, "ring"),
        ("to both sides", 92, True, "ring"),
    ],
)
def test_slices_of_other_texts_are_the_text(name, t, texts, context):
    ids = segments(t) if texts else None
    found = with_gradients(in_slices(OPTIONS[name], context), *arrays(t), ids)
    assert_close(found, with_gradients(on_one(OPTIONS[name]), *arrays(t), ids), 1e-5)


@pytest.mark.parametrize("n", [2, 3])
def test_other_numbers_of_slices(n):
    for t in (12 * n, 13 * n):
        expected = with_gradients(on_one({}), *arrays(t), segments(t))
        assert_close(
            with_gradients(in_slices({}, "ring", make_mesh(sequence=n)), *arrays(t), segments(t)),
            expected,
            1e-5,
            f"T={t}",
        )


@pytest.mark.parametrize("context", ["ring", "gather"])
def test_large_scores_stay_finite(context):
    q, k, v, do = arrays(88)
    found = with_gradients(in_slices({}, context), 1e3 * q, 1e3 * k, v, do, segments(88))
    assert all(np.all(np.isfinite(leaf)) for leaf in found.values())


def test_bfloat16_is_near_float32():
    """A part of a ring is rounded to 8 bits before it is merged, as the whole is on one device."""
    x = [a.astype(jnp.bfloat16) for a in arrays(88)]
    found = with_gradients(in_slices({}, "ring"), *x, segments(88))
    assert all(found[name].dtype == jnp.bfloat16 for name in "oqkv")
    assert_close(found, with_gradients(on_one({}), *arrays(88), segments(88)), 1.5e-2)


@pytest.mark.parametrize("other", ["data", "tensor"])
@pytest.mark.parametrize("context", ["ring", "gather"])
def test_rows_or_heads_are_cut_too(context, other):
    """Slices over two devices, rows or heads over two, of which the operation knows nothing."""
    t, mesh = 44, make_mesh(**{other: 2, "sequence": 2})
    place = jax.NamedSharding(mesh, jax.P("data", "sequence", "tensor"))
    cut = in_slices({}, context, mesh)
    found = with_gradients(cut, *jax.device_put(arrays(t), place), segments(t))
    assert_close(found, with_gradients(on_one({}), *arrays(t), segments(t)), 1e-5)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_zigzag_is_an_early_and_a_late_half(n):
    x_1T, mesh = jnp.arange(4 * n)[None], make_mesh(sequence=n)
    found = np.asarray(jax.jit(slices(_zigzag, mesh))(x_1T)).reshape(n, 2, 2)
    halves = np.arange(4 * n).reshape(2 * n, 2)
    assert np.array_equal(found, np.stack([halves[:n], halves[::-1][:n]], axis=1))
    assert np.array_equal(jax.jit(slices(lambda x: _unzigzag(_zigzag(x)), mesh))(x_1T), x_1T)


def test_a_ring_holds_two_slices_of_keys():
    """No array of the program has room for the keys of three slices, of the gradient's neither."""
    t, width = 512, 64
    x = jax.ShapeDtypeStruct((1, t, 1, width), jnp.float32)

    def temporary(context):
        f = lambda q, k, v: attention_slices(q, k, v, context=context)[0]
        g = jax.grad(lambda *x: jnp.sum(slices(f)(*x)), (0, 1, 2))
        text = jax.jit(g).lower(x, x, x).compile().as_text()
        return f"f32[1,{t},1,{width}]" in text or f"f32[1,1,{t},{width}]" in text

    assert temporary("gather") and not temporary("ring")


def test_another_way_is_refused():
    with pytest.raises(
        ValueError, match="no way to meet the keys of other slices is called 'rings'; did you mean 'ring'"
    ):
        jax.eval_shape(functools.partial(attention_slices, context="rings"), *arrays(8)[:3])
