"""Attention: every implementation against the plain form, output and gradients. B batch, T time, S key time, H heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ops import attention_block
from jaxeff.ops.attention import attention, attention_reference
from jaxeff.ops.attention_kernels import attention_cudnn, attention_splash
from tests.closeness import assert_close

B, H, K, C, E = 2, 4, 2, 8, 6


def arrays(t, s=None, b=B, h=H, k=K, c=C, e=E, dtype=jnp.float32, seed=0):
    """(q, k, v, do) of standard normal numbers."""
    s = t if s is None else s
    shapes = ((b, t, h, c), (b, s, k, c), (b, s, k, e), (b, t, h, e))
    keys = jax.random.split(jax.random.key(seed), 4)
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def with_gradients(f, q, k, v, do, **options):
    """{"o", "q", "k", "v"}: the output and the gradients of sum(o * do)."""

    @jax.jit
    def run(q, k, v, do):
        o, pull = jax.vjp(lambda *x: f(*x, **options), q, k, v)
        return dict(zip("oqkv", (o, *pull(do)), strict=True))

    return run(q, k, v, do)


def segments(t, b=B, pad=3):
    """Segments at odd boundaries, padding at the end of one row and in the middle of the other."""
    ids = np.ones((b, t), np.int32)
    ids[0, t // 3 :] = 2
    ids[0, t - pad :] = 0
    ids[1, t // 2 :] = 5
    ids[1, t // 4 : t // 4 + 2] = 0
    return jnp.asarray(ids)


def masked_softmax(q, k, v, see_BTS, scale, softcap=None):
    """Attention in float64 numpy, one head at a time: the ground truth for the plain form itself."""
    q, k, v, see = (np.asarray(x, np.float64) for x in (q, k, v, see_BTS))
    o = np.zeros(q.shape[:3] + v.shape[3:])
    for h in range(q.shape[2]):
        j = h // (q.shape[2] // k.shape[2])
        x = np.einsum("btc,bsc->bts", q[:, :, h], k[:, :, j]) * scale
        x = x if softcap is None else softcap * np.tanh(x / softcap)
        p = np.exp(x - x.max(-1, keepdims=True)) * see
        total = p.sum(-1, keepdims=True)
        o[:, :, h] = np.einsum("bts,bse->bte", p / np.where(total > 0, total, 1), v[:, :, j])
    return o


CASES = {
    "causal": dict(),
    "full": dict(causal=False),
    "window": dict(window=5),
    "window of one": dict(window=1),
    "window beyond T": dict(window=1000),
    "window, not causal": dict(window=7, causal=False),
    "softcap": dict(softcap=2.0),
    "scale": dict(scale=0.7),
    "softcap, window": dict(softcap=1.5, window=9, scale=1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_reference_is_softmax(name):
    t, options = 13, CASES[name]
    q, k, v, _ = arrays(t)
    ids = segments(t)
    difference = np.arange(t)[:, None] - np.arange(t)[None]
    see = (difference >= 0) if options.get("causal", True) or "window" in options else np.ones_like(difference, bool)
    see = see & (difference < options.get("window", t))
    see = see[None] & np.asarray((ids[:, :, None] == ids[:, None]) & (ids != 0)[:, None])
    expected = masked_softmax(q, k, v, see, options.get("scale", C**-0.5), options.get("softcap"))
    assert_close(attention_reference(q, k, v, segment_ids_BT=ids, **options), expected, 1e-6)


@pytest.mark.parametrize("with_segments", [False, True], ids=["one segment", "segments"])
@pytest.mark.parametrize("name", CASES)
def test_block_is_reference(name, with_segments, monkeypatch):
    monkeypatch.setattr(attention_block, "QUERIES", 16)
    for t in (31, 75) if with_segments else (1, 16, 75):
        x = arrays(t)
        options = CASES[name] | ({"segment_ids_BT": segments(t)} if with_segments else {})
        actual = with_gradients(functools.partial(attention, impl="block"), *x, **options)
        assert_close(actual, with_gradients(attention_reference, *x, **options), 1e-5, f"{name}, T={t}")


@pytest.mark.parametrize("h, k", [(6, 6), (6, 3), (6, 1)])
def test_head_groups(h, k):
    x = arrays(150, h=h, k=k)
    actual = with_gradients(functools.partial(attention, impl="block"), *x)
    assert_close(actual, with_gradients(attention_reference, *x), 1e-5)


def test_other_number_of_keys(monkeypatch):
    monkeypatch.setattr(attention_block, "QUERIES", 8)
    for t, s in ((20, 33), (40, 3)):
        x = arrays(t, s)
        for options in (dict(causal=False), dict(), dict(window=6)):
            actual = with_gradients(functools.partial(attention, impl="block"), *x, **options)
            assert_close(actual, with_gradients(attention_reference, *x, **options), 1e-5, f"T={t} S={s} {options}")


@pytest.mark.parametrize("options", [dict(), dict(window=6), dict(causal=False), dict(softcap=2.0)], ids=str)
def test_explicit_positions(options, monkeypatch):
    """Keys in any order, with empty slots, as in a ring buffer that is being filled."""
    monkeypatch.setattr(attention_block, "QUERIES", 8)
    t, s = 21, 40
    x = arrays(t, s)
    rng = np.random.default_rng(0)
    kv_positions = np.stack([rng.permutation(s) for _ in range(B)]).astype(np.int32)
    kv_positions[:, ::7] = -1
    options = options | dict(
        positions_BT=jnp.asarray(np.sort(rng.integers(0, s, (B, t)), axis=1), jnp.int32),
        kv_positions_BS=jnp.asarray(kv_positions),
        segment_ids_BT=jnp.asarray(rng.integers(1, 3, (B, t)), jnp.int32),
        kv_segment_ids_BS=jnp.asarray(rng.integers(0, 3, (B, s)), jnp.int32),
    )
    actual = with_gradients(functools.partial(attention, impl="block"), *x, **options)
    assert_close(actual, with_gradients(attention_reference, *x, **options), 1e-5)
    one = {name: ids[:, -1:] if name in ("positions_BT", "segment_ids_BT") else ids for name, ids in options.items()
           if name in ("positions_BT", "segment_ids_BT", "kv_positions_BS", "kv_segment_ids_BS")}  # fmt: skip
    decoded = attention(x[0][:, -1:], *x[1:3], **(options | one))
    assert_close(decoded, actual["o"][:, -1:], 1e-5, "one query")


def test_positions_as_indices_change_nothing():
    x = arrays(70)
    index = jnp.arange(70, dtype=jnp.int32)[None]
    actual = attention(*x[:3], window=20, positions_BT=index, kv_positions_BS=index, impl="block")
    assert_close(actual, attention(*x[:3], window=20, impl="block"), 1e-6)


@pytest.mark.parametrize("impl", ["block", "reference"])
def test_rows_that_see_nothing(impl):
    t = 40
    x = arrays(t)
    ids = jnp.zeros((B, t), jnp.int32).at[0, 10:20].set(3)
    got = with_gradients(functools.partial(attention, impl=impl), *x, segment_ids_BT=ids)
    hidden = np.asarray(ids == 0)
    for name, value in got.items():
        assert np.all(np.isfinite(value)), name
        assert np.all(np.asarray(value)[hidden] == 0), name
        assert np.any(np.asarray(value)[~hidden] != 0), name


@pytest.mark.parametrize("impl", ["block", "reference"])
def test_large_scores_stay_finite(impl):
    q, k, v, do = arrays(40)
    got = with_gradients(functools.partial(attention, impl=impl), 1e4 * q, 1e4 * k, v, do)
    assert all(np.all(np.isfinite(value)) for value in got.values())


def test_bfloat16_is_near_float32():
    """Scores and sums are float32; q, k, v, p and ds are rounded to 8 bits of mantissa: about 0.5 % a tensor."""
    x = arrays(130)
    actual = with_gradients(functools.partial(attention, impl="block"), *(a.astype(jnp.bfloat16) for a in x))
    assert all(a.dtype == jnp.bfloat16 for a in actual.values())
    assert_close(actual, with_gradients(attention_reference, *x), 1.2e-2)


def test_causality_is_exact(monkeypatch):
    monkeypatch.setattr(attention_block, "QUERIES", 16)
    q, k, v, _ = arrays(50)
    for cut in (0, 15, 16, 33):
        only = jax.grad(lambda k, v, cut=cut: jnp.sum(attention(q, k, v, impl="block")[:, : cut + 1]), (0, 1))(k, v)
        assert all(np.all(np.asarray(g)[:, cut + 1 :] == 0) for g in only)


def test_memory_grows_with_time_not_its_square():
    def temporary(f, t):
        q = jax.ShapeDtypeStruct((1, t, 4, 16), jnp.float32)
        k = jax.ShapeDtypeStruct((1, t, 1, 16), jnp.float32)
        g = jax.grad(lambda q, k, v: jnp.sum(f(q, k, v)), (0, 1, 2))
        return jax.jit(g).lower(q, k, k).compile().memory_analysis().temp_size_in_bytes

    short, long, naive = temporary(attention, 1024), temporary(attention, 4096), temporary(attention_reference, 4096)
    assert long <= naive / 8
    assert long <= 5 * short


def test_compiles_once_for_all_lengths_of_program():
    """A long causal call is a bounded program: stripes, not blocks, are written out."""
    from jaxeff.ops.attention_block import MAX_STRIPES, Options, plan

    options = Options(True, None, 1.0, None, True)
    for t in (1, 64, 65, 1000, 4096, 100_000):
        size, stripes = plan(t, t, options)
        assert len(stripes) <= MAX_STRIPES
        assert stripes[0].first == 0 and all(a.end == b.first for a, b in zip(stripes, stripes[1:], strict=False))
        assert stripes[-1].end * size >= t > (stripes[-1].end - 1) * size
        work = sum((stripe.end - stripe.first) * size * stripe.length for stripe in stripes)
        assert work <= 0.66 * t * t or t < 512


@pytest.mark.parametrize("name", ["causal", "full", "window", "softcap"])
def test_splash_kernel(name):
    """The TPU kernel, interpreted."""
    t, options = 256, CASES[name]
    q, k, v, _ = arrays(t, b=B, h=4, k=2, c=32, e=32)
    for ids in (None, segments(t)):
        expected = attention_reference(q, k, v, segment_ids_BT=ids, **options)
        static = attention_block.Options(
            options.get("causal", True), options.get("window"), 32**-0.5, options.get("softcap"), True
        )
        actual = attention_splash(q, k, v, None, None, ids, ids, static, interpret=True)
        assert_close(actual, expected, 1e-5, name)


@pytest.mark.parametrize("name", ["causal", "full", "window"])
def test_cudnn_arguments(name):
    """What cuDNN is asked for, computed by XLA instead."""
    t, options = 64, CASES[name]
    x = arrays(t, c=8, e=8)
    for ids in (None, segments(t)):
        static = attention_block.Options(options.get("causal", True), options.get("window"), C**-0.5, None, True)
        actual = with_gradients(
            lambda q, k, v, ids=ids, static=static: attention_cudnn(q, k, v, None, None, ids, ids, static, "xla"), *x
        )
        assert_close(actual, with_gradients(attention_reference, *x, segment_ids_BT=ids, **options), 1e-5, name)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(impl="flash"), "no attention implementation is called 'flash'; did you mean 'splash'"),
        (dict(impl="splash"), "needs a TPU; the backend is cpu"),
        (dict(impl="cudnn"), "needs an NVIDIA GPU; the backend is cpu"),
        (dict(window=0), "window must be at least 1, found 0"),
        (dict(kv_segment_ids_BS=jnp.ones((B, 8), jnp.int32)), "without segment_ids_BT"),
        (dict(segment_ids_BT=jnp.ones((B, 7), jnp.int32)), r"segment_ids_BT has shape \(2, 7\), expected \(2, 8\)"),
        (dict(positions_BT=jnp.ones((8,), jnp.int32)), r"positions_BT has shape \(8,\), expected \(2, 8\)"),
    ],
)
def test_errors(changes, message):
    q, k, v, _ = arrays(8)
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, **changes)


def test_errors_of_shape():
    q, k, v, _ = arrays(8)
    with pytest.raises(ValueError, match="do not fit queries"):
        attention(q, k[:, :4], v)
    with pytest.raises(ValueError, match="2 kv heads do not divide 3 query heads"):
        attention(q[:, :, :3], k, v)


def test_sharded_is_unsharded():
    """Batch and heads over a mesh of 2 x 2: the partitioner splits the block form."""
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = arrays(70, h=4, k=2)
    ids = segments(70)
    place = jax.NamedSharding(mesh, jax.P("data", None, "tensor"))
    placed = [jax.device_put(a, place) for a in x]
    f = functools.partial(attention, impl="block", segment_ids_BT=ids)
    assert_close(with_gradients(f, *placed), with_gradients(f, *x), 1e-6)
