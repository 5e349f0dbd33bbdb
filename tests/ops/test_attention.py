"""Attention: every implementation against the plain form, output and gradients. B batch, T time, S key time, H heads."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.sharding import make_mesh
from jaxeff.core.target import lowering_for
from jaxeff.ops import attention_block
from jaxeff.ops.attention import attention, attention_reference, attention_with_lse, band, choose
from jaxeff.ops.attention_block import Inputs, Options, plan
from jaxeff.ops.attention_kernels import attention_cudnn, attention_splash, why_not_cudnn
from jaxeff.ops.attention_split import on_each_device, why_not_split
from tests.closeness import assert_close

B, H, K, C, E = 2, 4, 2, 8, 6


def arrays(t, s=None, b=B, h=H, k=K, c=C, e=E, dtype=jnp.float32, seed=0):
    """(q, k, v, do) of standard normal numbers."""
    s = t if s is None else s
    shapes = ((b, t, h, c), (b, s, k, c), (b, s, k, e), (b, t, h, e))
    r = np.random.default_rng(seed)  # NumPy's, as JAX compiles a program for each shape
    return [jnp.asarray(r.standard_normal(shape).astype(dtype)) for shape in shapes]


def with_gradients(f, q, k, v, do, **options):
    """{"o", "q", "k", "v"}: the output and the gradients of sum(o * do)."""

    @jax.jit
    def run(q, k, v, do):
        o, pull = jax.vjp(lambda *x: f(*x, **options), q, k, v)
        return dict(zip("oqkv", (o, *pull(do)), strict=True))

    return run(q, k, v, do)


def all_gradients(impl, q, k, v, do, **options):
    """{"o", "lse", "q", "k", "v"}: both outputs and the gradients of sum(o * do) + sum(lse * dlse). lse = -inf shows as 99."""
    ids = {name: options.pop(name) for name in [*options] if name.endswith(("_BT", "_BS"))}
    # The reference depends on its arguments alone, so that tests share its programs; the block form on QUERIES, too.
    run = reference_gradients if impl == "reference" else jax.jit(_all_gradients, static_argnums=(0, 1))
    return run(impl, tuple(options.items()), q, k, v, do, ids)


def _all_gradients(impl, options, q, k, v, do, ids):
    (o, lse), pull = jax.vjp(lambda *x: attention_with_lse(*x, impl=impl, **dict(options), **ids), q, k, v)
    gradients = dict(zip("qkv", pull((do, dlse_of(do))), strict=True))
    return gradients | dict(o=o, lse=jnp.where(lse == -jnp.inf, 99.0, lse))


reference_gradients = jax.jit(_all_gradients, static_argnums=(0, 1))


def dlse_of(do):
    """A cotangent of lse [B, T, H] with no pattern of its own."""
    return jnp.cos(3 * do[..., 0].astype(jnp.float32))


def assert_block_is_reference(x, rms=1e-5, name="", **options):
    """Both outputs and all gradients of the block form against the reference."""
    assert_close(all_gradients("block", *x, **options), all_gradients("reference", *x, **options), rms, name)


def segments(t, b=B, pad=3):
    """Segments at odd boundaries, padding at the end of one row and in the middle of the other."""
    ids = np.ones((b, t), np.int32)
    ids[0, t // 3 :] = 2
    ids[0, t - pad :] = 0
    ids[1, t // 2 :] = 5
    ids[1, t // 4 : t // 4 + 2] = 0
    return jnp.asarray(ids)


def seen_by(t, s, causal=True, window=None, **_):
    """bool [T, S]: the keys that each query sees, by index."""
    ahead = np.arange(s)[None] - np.arange(t)[:, None]
    see = (ahead <= 0) if causal else np.ones((t, s), bool)
    return see if window is None else see & (ahead >= -window[0]) & (ahead <= window[1])


def static(causal=True, window=None, scale=None, softcap=None):
    """The `Options` of a call with implicit positions."""
    return Options(*band(causal, window), C**-0.5 if scale is None else scale, softcap, True)


def masked_softmax(q, k, v, see_BTS, scale=C**-0.5, softcap=None, **_):
    """(o, lse) in float64 numpy, one head at a time: the ground truth for the plain form itself."""
    q, k, v, see = (np.asarray(x, np.float64) for x in (q, k, v, see_BTS))
    o, lse = np.zeros(q.shape[:3] + v.shape[3:]), np.zeros(q.shape[:3])
    for h in range(q.shape[2]):
        j = h // (q.shape[2] // k.shape[2])
        x = np.einsum("btc,bsc->bts", q[:, :, h], k[:, :, j]) * scale
        x = x if softcap is None else softcap * np.tanh(x / softcap)
        p = np.exp(x) * see
        total = p.sum(-1)
        o[:, :, h] = np.einsum("bts,bse->bte", p / np.where(total > 0, total, 1)[..., None], v[:, :, j])
        lse[:, :, h] = np.where(total > 0, np.log(np.where(total > 0, total, 1)), -np.inf)
    return o, lse


CASES = {
    "causal": dict(),
    "full": dict(causal=False),
    "window": dict(window=(4, 0)),
    "window beyond T": dict(window=(999, 0)),
    "window, not causal": dict(window=(6, 0), causal=False),
    "band": dict(window=(2, 3), causal=False),
    "band of one": dict(window=(0, 0), causal=False),
    "band ahead": dict(window=(0, 4), causal=False),
    "band beyond T": dict(window=(20, 1000), causal=False),
    "softcap": dict(softcap=2.0),
    "scale": dict(scale=0.7),
    "softcap, band": dict(softcap=1.5, window=(20, 9), causal=False),
    "softcap, window": dict(softcap=1.5, window=(8, 0), scale=1.0),
}


def masked(t, options):
    """bool [B, T, T]: the keys seen under `options` and under `segments`."""
    ids = np.asarray(segments(t))
    return seen_by(t, t, **options)[None] & (ids[:, :, None] == ids[:, None]) & (ids != 0)[:, None]


@pytest.mark.parametrize("name", CASES)
def test_reference_is_softmax(name):
    t, options = 13, CASES[name]
    q, k, v, _ = arrays(t)
    o, lse = masked_softmax(q, k, v, masked(t, options), **options)

    @jax.jit
    def run(q, k, v, ids):
        both = attention_with_lse(q, k, v, segment_ids_BT=ids, impl="reference", **options)
        return *both, attention_reference(q, k, v, segment_ids_BT=ids, **options)

    actual_o, actual_lse, first = run(q, k, v, segments(t))
    assert_close(actual_o, o, 1e-6)
    assert np.array_equal(np.isneginf(actual_lse), np.isneginf(lse))
    assert_close(jnp.where(lse == -jnp.inf, 0, actual_lse), np.where(np.isneginf(lse), 0, lse), 1e-6)
    assert np.array_equal(first, actual_o)


@pytest.mark.parametrize("name", ["causal", "band", "softcap, band"])
def test_reference_gradients_are_differences(name):
    """Along one random direction, central differences in float64: an error of about step^2 = 1e-8."""
    t, options, step = 13, CASES[name], 1e-4
    *x, do = (np.asarray(a, np.float64) for a in arrays(t))
    direction = [np.asarray(a, np.float64) for a in arrays(t, seed=1)[:3]]
    dlse = np.asarray(dlse_of(jnp.asarray(do)), np.float64)

    def value(size):
        o, lse = masked_softmax(
            *(a + size * d for a, d in zip(x, direction, strict=True)), masked(t, options), **options
        )
        return np.sum(o * do) + np.sum(np.where(np.isneginf(lse), 0, lse) * dlse)

    got = all_gradients("reference", *arrays(t), segment_ids_BT=segments(t), **options)
    slope = sum(np.sum(np.asarray(got[n], np.float64) * d) for n, d in zip("qkv", direction, strict=True))
    assert_close(slope, (value(step) - value(-step)) / (2 * step), 1e-5)


@pytest.mark.parametrize("with_segments", [False, True], ids=["one segment", "segments"])
@pytest.mark.parametrize("name", CASES)
def test_block_is_reference(name, with_segments, monkeypatch):
    """The reference is always told segments, if only one: a program serves both."""
    monkeypatch.setattr(attention_block, "QUERIES", 16)
    t = 75
    x, ids = arrays(t), segments(t) if with_segments else jnp.ones((B, t), jnp.int32)
    told = {"segment_ids_BT": ids} if with_segments else {}
    found = all_gradients("block", *x, **CASES[name], **told)
    assert_close(found, all_gradients("reference", *x, **CASES[name], segment_ids_BT=ids), 1e-5, name)


@pytest.mark.parametrize("t", [1, 16, 31])
def test_few_queries(t, monkeypatch):
    monkeypatch.setattr(attention_block, "QUERIES", 16)
    for name in ("causal", "band"):
        assert_block_is_reference(arrays(t), name=name, **CASES[name])


def test_attention_is_the_first_of_two():
    """`attention` gives the same output and gradients as `attention_with_lse` whose lse is unused."""
    for impl in ("block", "reference"):
        actual = with_gradients(functools.partial(attention, impl=impl), *arrays(70))
        first = with_gradients(lambda *x, impl=impl: attention_with_lse(*x, impl=impl)[0], *arrays(70))
        assert_close(actual, first, 1e-7, impl)


@pytest.mark.parametrize("impl", ["block", "reference"])
def test_merge_of_disjoint_keys(impl):
    """Two calls that see a part of the keys each make one that sees all; the first queries see nothing in the second."""
    t = 40
    x = arrays(t)
    index = np.arange(t, dtype=np.int32)
    parts = index[index % 3 == 0], index[index % 3 != 0]

    def part(q, k, v, some):
        ids = dict(positions_BT=jnp.asarray(index[None]), kv_positions_BS=jnp.asarray(some[None]))
        return attention_with_lse(q, k[:, some], v[:, some], impl=impl, **ids)

    def merged(q, k, v):
        outputs = [part(q, k, v, some) for some in parts]
        assert outputs[1][1].shape == (B, t, H) and outputs[1][1].dtype == jnp.float32
        lse = jnp.logaddexp(outputs[0][1], outputs[1][1])
        return sum(jnp.exp(lse_i - lse)[..., None] * o_i for o_i, lse_i in outputs)

    assert_close(with_gradients(merged, *x), with_gradients(attention_reference, *x), 1e-5)
    assert np.all(np.isneginf(part(*x[:3], parts[1])[1][:, 0]))


@pytest.mark.parametrize("h, k", [(6, 6), (6, 3), (6, 1)])
def test_head_groups(h, k):
    assert_block_is_reference(arrays(150, h=h, k=k))


@pytest.mark.parametrize("name", ["full", "causal", "window", "band"])
def test_other_number_of_keys(name, monkeypatch):
    monkeypatch.setattr(attention_block, "QUERIES", 8)
    for t, s in ((20, 33), (40, 3)):
        assert_block_is_reference(arrays(t, s), name=f"T={t} S={s}", **CASES[name])


@pytest.mark.parametrize("name", ["causal", "window", "full", "band", "softcap"])
def test_explicit_positions(name, monkeypatch):
    """Keys in any order, with empty slots, as in a ring buffer that is being filled."""
    monkeypatch.setattr(attention_block, "QUERIES", 8)
    t, s = 21, 40
    x = arrays(t, s)
    rng = np.random.default_rng(0)
    kv_positions = np.stack([rng.permutation(s) for _ in range(B)]).astype(np.int32)
    kv_positions[:, ::7] = -1
    options = CASES[name] | dict(
        positions_BT=jnp.asarray(np.sort(rng.integers(0, s, (B, t)), axis=1), jnp.int32),
        kv_positions_BS=jnp.asarray(kv_positions),
        segment_ids_BT=jnp.asarray(rng.integers(1, 3, (B, t)), jnp.int32),
        kv_segment_ids_BS=jnp.asarray(rng.integers(0, 3, (B, s)), jnp.int32),
    )
    assert_block_is_reference(x, **options)
    one = {name: ids[:, -1:] if name in ("positions_BT", "segment_ids_BT") else ids for name, ids in options.items()
           if name in ("positions_BT", "segment_ids_BT", "kv_positions_BS", "kv_segment_ids_BS")}  # fmt: skip

    @jax.jit
    def run(q, k, v):
        return attention(q[:, -1:], k, v, **(options | one)), attention(q, k, v, impl="block", **options)[:, -1:]

    assert_close(*run(*x[:3]), 1e-5, "one query")


def test_positions_as_indices_change_nothing():
    x = arrays(70)
    index = jnp.arange(70, dtype=jnp.int32)[None]
    f = functools.partial(attention, window=(19, 0), impl="block")
    run = jax.jit(lambda *x: (f(*x, positions_BT=index, kv_positions_BS=index), f(*x)))
    assert_close(*run(*x[:3]), 1e-6)


@pytest.mark.parametrize("impl", ["block", "reference"])
def test_rows_that_see_nothing(impl):
    t = 40
    x = arrays(t)
    ids = jnp.zeros((B, t), jnp.int32).at[0, 10:20].set(3)
    hidden = np.asarray(ids == 0)
    got = all_gradients(impl, *x, segment_ids_BT=ids)
    assert np.all((np.asarray(got.pop("lse")) == 99) == hidden[..., None])
    for name, value in got.items():
        assert np.all(np.isfinite(value)), name
        assert np.all(np.asarray(value)[hidden] == 0), name
        assert np.any(np.asarray(value)[~hidden] != 0), name


@pytest.mark.parametrize("impl", ["block", "reference"])
def test_no_number_for_a_hidden_row_harms_nothing(impl):
    """-inf - -inf in a caller's merge sends NaN back to the lse of rows that see nothing."""
    t = 10
    q, k, v, do = arrays(t)
    ids = jnp.ones((B, t), jnp.int32).at[:, 4:6].set(0)
    dlse = jnp.where(ids == 0, jnp.nan, 1.0)[..., None] * jnp.ones((B, t, H))
    f = lambda *x: attention_with_lse(*x, segment_ids_BT=ids, impl=impl)
    gradients = jax.jit(lambda *x: jax.vjp(f, *x)[1]((do, dlse)))(q, k, v)
    assert all(np.all(np.isfinite(g)) for g in gradients)


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


@pytest.mark.parametrize("name", ["causal", "band"])
def test_no_gradient_from_unseen_keys(name, monkeypatch):
    monkeypatch.setattr(attention_block, "QUERIES", 16)
    q, k, v, do = arrays(50)
    see = seen_by(50, 50, **CASES[name])
    f = lambda *x: attention_with_lse(*x, impl="block", **CASES[name])
    pull = jax.jit(lambda do, dlse: jax.vjp(f, q, k, v)[1]((do, dlse)))
    for t in (0, 15, 16, 33):
        only = (jnp.arange(50) == t).astype(jnp.float32)[None, :, None]
        dk, dv = pull(do * only[..., None], dlse_of(do) * only)[1:]
        for g in (dk, dv):
            assert np.array_equal(np.any(np.asarray(g) != 0, axis=(0, 2, 3)), see[t])


@pytest.mark.shipped
def test_memory_grows_with_time_not_its_square():
    def temporary(f, t):
        q = jax.ShapeDtypeStruct((1, t, 4, 16), jnp.float32)
        k = jax.ShapeDtypeStruct((1, t, 1, 16), jnp.float32)
        g = jax.grad(lambda q, k, v: jnp.sum(f(q, k, v)), (0, 1, 2))
        return jax.jit(g).lower(q, k, k).compile().memory_analysis().temp_size_in_bytes

    both = lambda *x: sum(jnp.sum(y) for y in attention_with_lse(*x))
    short, long, naive = temporary(attention, 1024), temporary(attention, 4096), temporary(attention_reference, 4096)
    assert long <= naive / 8
    assert long <= 5 * short
    assert temporary(both, 4096) <= 1.1 * long


def test_compiles_once_for_all_lengths_of_program():
    """A long causal call is a bounded program: stripes, not blocks, are written out."""
    for t in (1, 64, 65, 1000, 4096, 100_000):
        size, stripes = plan(t, t, static())
        assert len(stripes) <= attention_block.MAX_STRIPES
        assert stripes[0].first == 0 and all(a.end == b.first for a, b in zip(stripes, stripes[1:], strict=False))
        assert stripes[-1].end * size >= t > (stripes[-1].end - 1) * size
        work = sum((stripe.end - stripe.first) * size * stripe.length for stripe in stripes)
        assert work <= 0.66 * t * t or t < 512


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("t, s", [(1000, 1000), (200, 1000), (1000, 200)])
def test_blocks_meet_the_keys_they_see(t, s, name):
    """Every key that a query sees is in its block, and a narrow band's blocks are narrow."""
    see = seen_by(t, s, **CASES[name])
    size, stripes = plan(t, s, static(**CASES[name]))
    for stripe in stripes:
        for i, start in zip(range(stripe.first, stripe.end), stripe.starts, strict=True):
            rows = see[i * size : (i + 1) * size]
            assert 0 <= start and start + stripe.length <= s
            assert rows[:, start : start + stripe.length].sum() == rows.sum()
    if "window" in CASES[name] and sum(CASES[name]["window"]) < 100:
        assert stripes[0].length == size + sum(CASES[name]["window"])


@pytest.mark.parametrize("name", ["causal", "full", "window", "band", "softcap"])
def test_splash_kernel(name):
    """The TPU kernel, interpreted."""
    t, options = 256, CASES[name]
    x = arrays(t, b=B, h=4, k=2, c=32, e=32)[:3]

    @jax.jit
    def run(q, k, v, ids):
        inputs = Inputs(q, k, v, segments=ids, kv_segments=ids)
        actual, _ = attention_splash(inputs, static(scale=32**-0.5, **options), interpret=True)
        return actual, attention_reference(q, k, v, segment_ids_BT=ids, **options)

    for ids in (None, segments(t)):
        assert_close(*run(*x, ids), 1e-5, name)


@pytest.mark.parametrize("name", ["causal", "full", "window", "window, not causal"])
def test_cudnn_arguments(name):
    """What cuDNN is asked for, computed by XLA instead."""
    t, options = 64, CASES[name]
    x = arrays(t, c=8, e=8)
    for ids in (None, segments(t)):
        inputs = functools.partial(Inputs, segments=ids, kv_segments=ids)
        f = lambda *x, inputs=inputs: attention_cudnn(inputs(*x), static(**options), "xla")[0]
        expected = with_gradients(attention_reference, *x, segment_ids_BT=ids, **options)
        assert_close(with_gradients(f, *x), expected, 1e-5, name)


@jax.jit
def on_one_device(*x_and_ids):
    """What several devices are compared with: a program for each number of heads."""
    *x, ids = x_and_ids
    return with_gradients(attention, *x, segment_ids_BT=ids, impl="block")


@pytest.mark.parametrize(
    "kv_heads, sizes",
    [(2, dict(data=4)), (4, dict(tensor=4)), (2, dict(tensor=4)), (1, dict(fsdp=2, tensor=2)), (1, dict(sequence=4))],
    ids=str,
)
def test_splash_kernel_on_each_device(kv_heads, sizes):
    """Rows and heads cut over four devices, fewer kv heads than devices among them; gradients, too."""
    t, mesh = 128, make_mesh(**sizes)
    x, ids = arrays(t, b=4, h=4, k=kv_heads, c=16, e=16), segments(t, b=4)
    splash = functools.partial(attention_splash, interpret=True)

    def split(*x, ids):
        options = static(scale=16**-0.5)
        return on_each_device(splash, Inputs(*x, segments=ids, kv_segments=ids), options, mesh)[0]

    for some in (ids, ids[:1], None):
        expected = on_one_device(*x, jnp.ones_like(ids) if some is None else jnp.broadcast_to(some, ids.shape))
        assert_close(with_gradients(split, *x, ids=some), expected, 1e-5)


def test_cudnn_arguments_on_each_device():
    t, mesh = 64, make_mesh(data=2, tensor=2)
    x, ids = arrays(t, c=8, e=8, k=1), segments(t)
    cudnn = functools.partial(attention_cudnn, implementation="xla")
    split = lambda *x: on_each_device(cudnn, Inputs(*x, segments=ids, kv_segments=ids), static(), mesh)[0]
    assert_close(with_gradients(split, *x), with_gradients(attention_reference, *x, segment_ids_BT=ids), 1e-5)


def test_heads_that_cannot_be_split_are_told():
    x, mesh = Inputs(*arrays(128, h=12, k=3)[:3]), make_mesh(tensor=2)
    assert "3 kv heads over 2 devices" in why_not_split(x, mesh)
    assert why_not_split(x, make_mesh(data=2)) is None and why_not_split(x, None) is None
    with lowering_for("tpu"):
        assert choose(x, static()) == "splash" and choose(x, static(), mesh) == "block"
        with pytest.raises(ValueError, match=r"impl='splash'\) cannot be split: 3 kv heads over 2 devices"):
            jax.eval_shape(functools.partial(attention, impl="splash", mesh=mesh), *x[:3])


def test_cudnn_sees_nothing_to_the_right(monkeypatch):
    """JAX's cuDNN attention has a left window only."""
    gpu = types.SimpleNamespace(client=types.SimpleNamespace(platform_version="CUDA"), compute_capability="9.0")
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    inputs = Inputs(*arrays(8, e=C, dtype=jnp.bfloat16)[:3])
    with lowering_for("gpu"):
        assert "nothing to the right" in why_not_cudnn(inputs, static(causal=False, window=(2, 3)))
        for options in (dict(), dict(causal=False), dict(window=(2, 0)), dict(causal=False, window=(2, 0))):
            assert why_not_cudnn(inputs, static(**options)) is None


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(impl="flash"), "no attention implementation is called 'flash'; did you mean 'splash'"),
        (dict(impl="splash"), "needs a TPU; the program is for a cpu"),
        (dict(impl="cudnn"), "needs an NVIDIA GPU; the program is for a cpu"),
        (dict(window=5), r"window must be \(left, right\), found 5; .*write window=\(4, 0\)"),
        (dict(window=(-1, 0)), r"two integers of at least 0, found \(-1, 0\)"),
        (dict(window=(2, -3), causal=False), r"two integers of at least 0, found \(2, -3\)"),
        (dict(window=(2, None), causal=False), r"two integers of at least 0, found \(2, None\)"),
        (
            dict(window=(2, 3)),
            r"causal=True sees nothing to the right, found window=\(2, 3\): write window=\(2, 0\), or",
        ),
        (dict(kv_segment_ids_BS=jnp.ones((B, 8), jnp.int32)), "without segment_ids_BT"),
        (dict(segment_ids_BT=jnp.ones((B, 7), jnp.int32)), r"segment_ids_BT has shape \(2, 7\), expected \(2, 8\)"),
        (dict(positions_BT=jnp.ones((8,), jnp.int32)), r"positions_BT has shape \(8,\), expected \(2, 8\)"),
    ],
)
def test_errors(changes, message):
    q, k, v, _ = arrays(8)
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, **changes)


@pytest.mark.parametrize("impl", ["splash", "cudnn"])
def test_lse_of_a_kernel_is_an_error(impl):
    with pytest.raises(
        ValueError, match=rf"attention_with_lse\(impl='{impl}'\).*write impl='block' or impl='reference'"
    ):
        attention_with_lse(*arrays(8)[:3], impl=impl)


def test_errors_of_shape():
    q, k, v, _ = arrays(8)
    with pytest.raises(ValueError, match="do not fit queries"):
        attention(q, k[:, :4], v)
    with pytest.raises(ValueError, match="2 kv heads do not divide 3 query heads"):
        attention(q[:, :, :3], k, v)


@pytest.mark.shipped
def test_sharded_is_unsharded():
    """Batch and heads over a mesh of 2 x 2: the partitioner splits the block form."""
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = arrays(70, h=4, k=2)
    ids = segments(70)
    place = jax.NamedSharding(mesh, jax.P("data", None, "tensor"))
    placed = [jax.device_put(a, place) for a in x]
    f = functools.partial(attention, impl="block", segment_ids_BT=ids)
    assert_close(with_gradients(f, *placed), with_gradients(f, *x), 1e-6)
