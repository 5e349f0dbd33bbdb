"""What the Mosaic kernels of recurrences share: a chunk of 128 tokens of some heads is a step of the grid (B, groups of heads, N).

Chunks come one after the other, and the state that goes from one to the next is the block of an output: it stays in the chip's
vector memory. Gates come as rows of numbers that tokens have beside their vectors, sums of their logarithms from the chunk's start.

To count the cycles of a step, compile a kernel alone for a chip under LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR
--xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*": lines with ">" before "{" in
DIR/*final_bundles.txt are the body of the loop over the grid, a cycle each.

B batch, T time, H heads, G heads of a step, C key dim, E value dim, N chunks, I and J times within a chunk, R rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from jaxeff.core.sharding import Rules, pspec
from jaxeff.ops.decay import UNIT, WEAKEST, cut
from jaxeff.ops.pallas import spread

CHUNK = UNIT  # tokens: as wide as the matrix unit and the vectors are
LANES = 128
STEP = 8 * 128**2  # numbers of the states of a step's heads: what fits the vector memory of a v5e
WIDEST = 512**2  # numbers of one head's state that fit
NEVER = -1e30  # log of no weight; exp of it is 0


def why_not(q: jax.Array, v_BTHE: jax.Array, log_a: jax.Array | None, half, narrow: int = LANES) -> str | None:
    """Why a kernel cannot serve a call, or None. half: the type of products' factors. narrow: the one value dim below 128 that it
    can serve."""
    C, (_, T, _, E) = q.shape[-1], v_BTHE.shape
    if C % LANES or (E % LANES and E != narrow):
        return f"needs channels of a multiple of {LANES}, found {C} and {E}"
    if C * E > WIDEST:
        return f"needs a state of at most {WIDEST} numbers, found {C} x {E}"
    if T < CHUNK:
        return f"needs {CHUNK} tokens, found {T}"
    if half != jnp.bfloat16:
        return f"needs bfloat16, found {half}"
    if log_a is not None and log_a.ndim != 3:
        return "needs one gate a head"
    return None


def on_each_device(run: Callable, arrays: tuple, kinds: tuple[str, ...], shape_BTH, mesh, rules: Rules):
    """`run(*arrays)`, which gives (o_BTHE, a state [B, H, ...]), by each device of the mesh for its rows and heads. kinds: of each
    array "tokens" [B, T, H, ...], "rows" [B, ...], the same for all heads, "heads" [H], or "state"."""

    def specs():
        rows, _, heads = pspec(("batch", None, "heads"), shape_BTH, mesh, rules)
        of = dict(tokens=PartitionSpec(rows, None, heads), rows=PartitionSpec(rows), heads=PartitionSpec(heads))
        of["state"] = PartitionSpec(rows, heads)
        return tuple(of[kind] for kind in kinds), (of["tokens"], of["state"])

    return spread.on_each_device(run, arrays, mesh, specs)


def heads_of_a_step(H: int, C: int, E: int, multiple: int = 1) -> int:
    """G, a multiple of `multiple`: several heads fill the matrix units while products of one wait for each other."""
    most = max(multiple, STEP // (C * E))
    return next(g for g in range(most, 0, -1) if H % g == 0 and g % multiple == 0)


def gate_rows(log_a_BTH, reset_BT, shape_BTH, G: int, before: bool = False, factors_BTH=()):
    """[B, H/G, N, R, I] in float32: for each of G heads the sum of log a from the chunk's start to the token, then the resets up to
    the token; zeros fill R to a multiple of 8. before: for each head also the sum to before the token, after the sums, and the
    resets to before it, after the resets. factors_BTH: further numbers of each head, after all these."""
    log_a_BTH = jnp.zeros(shape_BTH) if log_a_BTH is None else log_a_BTH
    log_a_BTH = jnp.maximum(log_a_BTH.astype(jnp.float32), WEAKEST)

    def by_step(x_BNIH):
        return x_BNIH.reshape(*x_BNIH.shape[:3], -1, G).transpose(0, 3, 1, 4, 2)

    sums = by_step(jnp.cumsum(cut(log_a_BTH, CHUNK), axis=2))
    factors = [by_step(cut(x.astype(jnp.float32), CHUNK)) for x in factors_BTH]
    if reset_BT is None:
        resets = jnp.zeros((*sums.shape[:3], 1, CHUNK))
    else:
        resets = jnp.cumsum(cut(reset_BT.astype(jnp.float32), CHUNK), axis=-1)
        resets = jnp.broadcast_to(resets[:, None, :, None], (*sums.shape[:3], 1, CHUNK))
    lagged = lambda x: [jnp.pad(x[..., :-1], ((0, 0),) * 4 + ((1, 0),))] if before else []  # noqa: E731
    rows = jnp.concatenate([sums, *lagged(sums), resets, *lagged(resets), *factors], axis=-2)
    return jnp.pad(rows, ((0, 0),) * 3 + ((0, -rows.shape[-2] % 8), (0, 0)))


def places(axis: int, shape=(CHUNK, CHUNK)):
    """The place of each number along an axis."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _contract(x, y, of_x: int, of_y: int):
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return jax.lax.dot_general(x, y, (((of_x,), (of_y,)), ((), ())), preferred_element_type=jnp.float32)


def mul(x, y):
    """x y, of 16-bit factors, in float32."""
    return _contract(x, y, 1, 0)


def rows_by_rows(x, y):
    """x y^T."""
    return _contract(x, y, 1, 1)


def cols_by_cols(x, y):
    """x^T y."""
    return _contract(x, y, 0, 0)


class Block(NamedTuple):
    """What a step of the grid sees of an array: `index` of its numbers (b, group of heads, n) is the place of its block."""

    shape: tuple[int, ...]
    block: tuple[int, ...]
    index: Callable

    @property
    def spec(self) -> pl.BlockSpec:
        return pl.BlockSpec(self.block, self.index)


def call(kernel: Callable, grid: tuple[int, int, int], inputs, outputs, interpret: bool):
    """The kernel's outputs over the grid. inputs: [(array, its block)], outputs: [(block, type)]."""
    arrays, blocks = zip(*inputs, strict=True)
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[x.spec for x in blocks],
        out_specs=[x.spec for x, _ in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, dtype) for x, dtype in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(*arrays)
