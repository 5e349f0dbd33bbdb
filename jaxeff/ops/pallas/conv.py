"""The short causal depthwise convolution with its activation, as a Mosaic kernel for TPUs.

The equation is that of `ops.conv`. A step of the grid has a block of tokens and channels: it reads x once and writes y once; the
backward kernel reads x and dy and writes dx, and computes again what it needs of y before its activation. All sums are float32. The
last tokens before each block come beside x; of the gradients after it the backward kernel, which goes from the last block to the
first, keeps the first ones in vector memory, where the sums for w and bias lie, too.

The compiler's schedule for a v5e, W 4, silu: a step of 512 tokens and 512 channels is 1388 cycles forward and 3446 backward, 2044
and 4647 where texts start; main memory takes 1920 and 2880 of 1.5 GHz. The 128 steps of B 4, T 2048, D 4096 are then 0.16 and 0.29
ms (0.17 and 0.40 where texts start). The planner counts a kernel's memory alone, 0.16 and 0.25, and for the XLA program
of `ops.conv` 0.72 and 2.37 ms. To count again, compile for that chip under
LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*": lines
with ">" before "{" in DIR/*final_bundles.txt are the body of the loop over the grid, a cycle each; those with ">>" are a loop over
registers' lanes in it, of which such a step has four turns.

B batch, T time, D channels, W width, N blocks of time, C channels of a block, E tokens around a block, K rows of weights: the
newest token's first, then the bias, then zeros.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from jaxeff.core.sharding import RULES, Rules, pspec
from jaxeff.core.target import kernel_scope
from jaxeff.ops.pallas import spread

LANES = 128
TOKENS = 512  # of a block, at most
CHANNELS = 512  # of a block, at most
EDGE = 16  # tokens kept around a block: rows of a tile of 16-bit numbers
ROWS = 64  # tokens that are worked on at once: 8 registers
SUBLANES = 8
SHORTEST = 128  # tokens
WIDEST = SUBLANES - 1  # taps that the rows of weights hold beside the bias


def why_not(x_BTD: jax.Array, w_WD: jax.Array, activation, mesh=None, rules: Rules = RULES, axis: str | None = None):
    """Why the kernel cannot serve a call, or None. axis: the logical axis of the channels."""
    if x_BTD.dtype != jnp.bfloat16:
        return f"needs bfloat16, found {x_BTD.dtype}"
    if activation not in (None, jax.nn.silu):
        return "has no activation but silu"
    if not 2 <= w_WD.shape[0] <= WIDEST:
        return f"needs a width of 2 to {WIDEST}, found {w_WD.shape[0]}"
    if x_BTD.shape[1] < SHORTEST:
        return f"needs {SHORTEST} tokens, found {x_BTD.shape[1]}"
    channels = spread.part(x_BTD.shape, ("batch", None, axis), mesh, rules)[2]
    return f"needs channels of a multiple of {LANES}, found {channels}" if channels % LANES else None


def by_kernel(x_BTD, w_WD, bias_D=None, taps_BWD=None, seen_BT=None, *, silu: bool = False, interpret: bool = False):
    """y_BTD in x's dtype. taps_BWD: inputs before the first, None is zero. seen_BT: how many tokens back belong to a token's own
    text, at most W - 1, and -1 where it sees not even itself (padding); None where it sees all. interpret: run on any machine,
    slowly."""
    (B, T, D), W = x_BTD.shape, w_WD.shape[0]
    size = tokens_of_a_step(T)
    bias_D = jnp.zeros((D,)) if bias_D is None else bias_D
    weights = [w_WD.astype(jnp.float32)[::-1], bias_D.astype(jnp.float32)[None]]
    weights_KD = jnp.pad(jnp.concatenate(weights), ((0, SUBLANES - W - 1), (0, 0)))
    taps_BWD = jnp.zeros((B, 0, D)) if taps_BWD is None else taps_BWD
    taps_BED = jnp.pad(taps_BWD.astype(x_BTD.dtype), ((0, 0), (EDGE - taps_BWD.shape[1], 0), (0, 0)))
    if seen_BT is not None:
        seen_BT = jnp.pad(seen_BT.astype(jnp.float32), ((0, 0), (0, -T % size)), constant_values=-1)
    x_BTD = jnp.pad(x_BTD, ((0, 0), (0, -T % size), (0, 0)))
    with kernel_scope(2 * B * T * D * W, LANES):
        return _conv(x_BTD, weights_KD, taps_BED, seen_BT, Options(W, silu, interpret))[:, :T]


def on_each_device(x_BTD, w_WD, bias_D, taps_BWD, seen_BT, *, mesh=None, rules: Rules = RULES, axis=None, **options):
    """`by_kernel` by each device of the mesh for its rows and channels."""

    def specs():
        rows, _, channels = pspec(("batch", None, axis), x_BTD.shape, mesh, rules)
        tokens, weights, bias = (
            PartitionSpec(rows, None, channels),
            PartitionSpec(None, channels),
            PartitionSpec(channels),
        )
        return (tokens, weights, bias, tokens, PartitionSpec(rows)), tokens

    run = functools.partial(by_kernel, **options)
    return spread.on_each_device(run, (x_BTD, w_WD, bias_D, taps_BWD, seen_BT), mesh, specs)


def tokens_of_a_step(T: int) -> int:
    """A multiple of 16: steps of much the same size."""
    steps = -(-T // TOKENS)
    return -(-T // (steps * EDGE)) * EDGE


class Options(NamedTuple):
    """What a kernel is made for."""

    width: int
    silu: bool
    interpret: bool


def _chunks(size: int):
    """(first, end) of the rows that are worked on at once."""
    return [(first, min(first + ROWS, size)) for first in range(0, size, ROWS)]


def _each_lanes(x, work):
    """`work` for the parts of a block's channels that fill registers."""

    def step(n, _):
        work(pl.ds(pl.multiple_of(n * LANES, LANES), LANES))

    jax.lax.fori_loop(0, x.shape[-1] // LANES, step, None)


def _spread(seen, place):
    """A row of numbers of tokens [1, block] into a column that fills all lanes."""
    size = seen.shape[-1]
    for first in range(0, size, LANES):
        end = min(first + LANES, size)
        place[first:end] = jnp.broadcast_to(seen[0, 0, :, first:end], (LANES, end - first)).T


def _wide(x):
    return x.astype(jnp.float32)


def _near(x, before, first: int, lanes):
    """The 8 tokens before a block's row `first`."""
    edge = x[0, first - EDGE : first, lanes] if first else before[0, :, lanes]
    return _wide(edge)[EDGE - SUBLANES :]


def _later(x, before, i: int):
    """x moved by i rows to later ones, of which the first come from the 8 rows before."""
    return pltpu.roll(jnp.concatenate([before, x]), i, 0)[SUBLANES:] if i else x


def _earlier(x, after, i: int):
    """x moved by i rows to earlier ones, of which the last come from the 8 rows after."""
    return pltpu.roll(jnp.concatenate([x, after]), x.shape[0] + SUBLANES - i, 0)[: x.shape[0]] if i else x


def _visible(x, seen, i: int):
    """x where a token sees the one i before it, else zero."""
    return x if seen is None else jnp.where(seen > i - 0.5, x, 0.0)


def _weighted(weights, numbers):
    return functools.reduce(jnp.add, [w * x for w, x in zip(weights, numbers, strict=True)])


def _scale(options: Options) -> float:
    """silu p = h + h tanh h and d silu / dp = (1 + tanh h) (1 + h (1 - tanh h)) / 2 with h = p / 2: the half is in the weights."""
    return 0.5 if options.silu else 1.0


def _forward_kernel(options: Options, masked: bool, x, before, weights, *refs):
    W = options.width
    y, column = refs[-2:] if masked else (refs[-1], None)
    if masked:
        _spread(refs[0], column)

    @functools.partial(_each_lanes, x)
    def _(lanes):
        w = _scale(options) * weights[:, lanes]
        for first, end in _chunks(x.shape[1]):
            seen = column[first:end] if masked else None
            now, near = _wide(x[0, first:end, lanes]), _near(x, before, first, lanes)
            h = _weighted(w[:W, None], [_visible(_later(now, near, i), seen, i) for i in range(W)]) + w[W : W + 1]
            y[0, first:end, lanes] = (h + h * jnp.tanh(h) if options.silu else h).astype(y.dtype)


def _backward_kernel(options: Options, masked: bool, x, before, weights, *refs):
    """g, the gradient before the activation, is twice as large with silu, as weights are halved. after: of the next block's first 8
    tokens, g where they see i back."""
    W = options.width
    dy, dx, dtaps, sums, after = refs[masked : masked + 5]
    b, n = pl.program_id(1), pl.program_id(2)

    @pl.when((b == 0) & (n == 0))
    def _():
        sums[...] = jnp.zeros_like(sums)

    @pl.when(n == 0)
    def _():
        after[...] = jnp.zeros_like(after)

    if masked:
        _spread(refs[0], refs[-1])

    @functools.partial(_each_lanes, x)
    def _(lanes):
        w = _scale(options) * weights[:, lanes]
        ahead, added = [after[i, :, lanes] for i in range(W)], [sums[k, :, lanes] for k in range(W + 1)]
        for first, end in reversed(_chunks(x.shape[1])):
            seen = refs[-1][first:end] if masked else None
            now, near = _wide(x[0, first:end, lanes]), _near(x, before, first, lanes)
            inputs = [_visible(_later(now, near, i), seen, i) for i in range(W)]
            g = _before_activation(options, w, inputs, _wide(dy[0, first:end, lanes]))
            seeing = [_visible(g, seen, i) for i in range(W)]
            moved = [_earlier(g, a, i) for i, (g, a) in enumerate(zip(seeing, ahead, strict=True))]
            dx[0, first:end, lanes] = _weighted(w[:W, None], moved).astype(dx.dtype)
            added = [s + _folded(a) for s, a in zip(added, [*(g * a for a in inputs), g], strict=True)]
            ahead = [g[:SUBLANES] for g in seeing]
        for k, a in enumerate(added):
            sums[k, :, lanes] = a
        for i, a in enumerate(ahead):
            after[i, :, lanes] = a

    @pl.when(n == pl.num_programs(2) - 1)
    def _():
        none = jnp.zeros((SUBLANES, x.shape[-1]))
        moved = [_earlier(none, after[i], i) for i in range(1, W)]
        taps = _weighted((_scale(options) * weights[...])[1:W, None], moved)
        dtaps[0] = jnp.concatenate([none, taps]).astype(dtaps.dtype)


def _before_activation(options: Options, w, inputs, dy):
    """g, from the gradient of y."""
    if not options.silu:
        return dy
    h = _weighted(w[: options.width, None], inputs) + w[options.width : options.width + 1]
    t = jnp.tanh(h)
    return dy * (1 + t) * (1 + h * (1 - t))


def _folded(x):
    """Sums of rows 8 apart."""
    return jnp.sum(x.reshape(-1, SUBLANES, x.shape[-1]), axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _conv(x_BTD, weights_KD, taps_BED, seen_BT, options: Options):
    """y_BTD of whole blocks of time."""
    call, inputs, at = _layout(x_BTD, weights_KD, taps_BED, seen_BT, options, backward=False)
    return call(_forward_kernel, inputs, [(at.tokens, x_BTD)], [])[0]


def _conv_forward(x_BTD, weights_KD, taps_BED, seen_BT, options):
    arrays = (x_BTD, weights_KD, taps_BED, seen_BT)
    return _conv(*arrays, options), arrays


def _conv_backward(options, arrays, dy_BTD):
    x_BTD, weights_KD, taps_BED, seen_BT = arrays
    call, inputs, at = _layout(*arrays, options, backward=True)
    sums = jax.ShapeDtypeStruct((options.width + 1, SUBLANES, x_BTD.shape[2]), jnp.float32)
    outputs = [(at.tokens, x_BTD), (at.taps, taps_BED), (at.sums, sums)]
    dx_BTD, dtaps_BED, dw = call(_backward_kernel, [*inputs, (dy_BTD, at.tokens)], outputs, [at.after])
    dw_KD = jnp.pad(_scale(options) * jnp.sum(dw, axis=1), ((0, weights_KD.shape[0] - dw.shape[0]), (0, 0)))
    return dx_BTD, dw_KD, dtaps_BED, None if seen_BT is None else jnp.zeros_like(seen_BT)


_conv.defvjp(_conv_forward, _conv_backward)


class Places(NamedTuple):
    """Blocks of arrays, and the shape of scratch."""

    tokens: pl.BlockSpec
    taps: pl.BlockSpec
    sums: pl.BlockSpec
    after: tuple[int, int, int]


def _layout(x_BTD, weights_KD, taps_BED, seen_BT, options: Options, backward: bool):
    """(a function that calls a kernel; [(array, its block)] that both kernels read; Places). The grid is channels, rows, time."""
    B, T, D = x_BTD.shape
    size, C = tokens_of_a_step(T), next(c for c in range(min(CHANNELS, D), 0, -LANES) if D % c == 0)
    N = T // size
    time = (lambda n: N - 1 - n) if backward else (lambda n: n)
    tokens = pl.BlockSpec((1, size, C), lambda d, b, n: (b, time(n), d))
    # Slices of three dimensions: of a reshaped array the compiler takes them in a layout that it must first be copied to.
    ends = [x_BTD[:, n * size - EDGE : n * size] for n in range(1, N)]
    before_BED = jnp.concatenate([taps_BED, *ends], axis=1)
    inputs = [
        (x_BTD, tokens),
        (before_BED, pl.BlockSpec((1, EDGE, C), lambda d, b, n: (b, time(n), d))),
        (weights_KD, pl.BlockSpec((SUBLANES, C), lambda d, b, n: (0, d))),
    ]
    if seen_BT is not None:
        row = pl.BlockSpec((1, 1, 1, size), lambda d, b, n: (b, time(n), 0, 0))
        inputs.append((seen_BT.reshape(B, N, 1, size), row))
    at = Places(
        tokens,
        pl.BlockSpec((1, EDGE, C), lambda d, b, n: (b, 0, d)),
        pl.BlockSpec((options.width + 1, SUBLANES, C), lambda d, b, n: (0, 0, d)),
        (options.width, SUBLANES, C),
    )
    column = [] if seen_BT is None else [(size, LANES)]

    def call(kernel, inputs, outputs, scratch):
        arrays, blocks = zip(*inputs, strict=True)
        return pl.pallas_call(
            functools.partial(kernel, options, seen_BT is not None),
            grid=(D // C, B, N),
            in_specs=blocks,
            out_specs=[block for block, _ in outputs],
            out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for _, like in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch + column],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
            interpret=options.interpret,
        )(*arrays)

    return call, inputs, at
