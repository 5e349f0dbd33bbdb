"""Loss of tokens and the gradient of their logits, as a Mosaic kernel for TPUs: logits are read once, gradients written once.

The equations are those of `ops.token_loss`, in float32. A step of the grid has all logits of some tokens and goes over them three
times in vector memory: for the largest, for the sums, for the gradients, which leave in 16 bits.

The compiler's schedule for a v5e, 32 tokens of V 32768 a step: 6,542 cycles, 6.4 for a register of 1024 logits, 7.3 with z-loss and
label smoothing, 9.5 with a soft cap. All of 8192 tokens are 1.1 ms at 1.5 GHz; main memory takes longer, 2.0, and that is what the
planner counts, for XLA's passes 7.3. `ops.pallas.chunks` says how to count again; lines with ">>" are the three loops, 8 times 128
logits a turn.

B batch, P tokens of a row, R tokens of a step, V vocabulary, L lanes.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxeff.core.sharding import RULES, Rules, pspec
from jaxeff.core.target import kernel_scope
from jaxeff.ops import token_loss
from jaxeff.ops.pallas import spread
from jaxeff.ops.pallas.chunks import LANES, places
from jaxeff.ops.token_loss import Sums, Terms, Told

ROWS = 16  # tokens of a register of 16-bit numbers
REGISTER = 1024  # numbers of 32 bits
STEP = 2**20  # logits of a step, about
WIDEST = 2**18  # logits of a token: a step of so many still fits the vector memory
TOGETHER = 8  # registers of a token that are scheduled together
CYCLES, CAPPED = 7, 10  # for a register of logits, without and with a soft cap, by the schedule
AXES = ("batch", "time", "vocab")


def why_not(shape_BPV: tuple[int, int, int], half, mesh=None, rules: Rules = RULES) -> str | None:
    """Why the kernel cannot serve logits of this shape with gradients of type `half`, or None."""
    _, P, V = spread.part(shape_BPV, AXES, mesh, rules)
    if V < shape_BPV[2]:
        return "needs the whole vocabulary on each device"
    if V % LANES or V > WIDEST:
        return f"needs a vocabulary of a multiple of {LANES}, at most {WIDEST}, found {V}"
    if P % ROWS:
        return f"needs a multiple of {ROWS} tokens, found {P}"
    return None if half == jnp.bfloat16 else f"needs bfloat16, found {half}"


def by_kernel(y_BPV, targets_BP, mask_BP, terms: Terms, *, interpret: bool = False):
    """(`Told` of tokens, [B, P] each; d(mask loss)/dy in bfloat16). interpret: run on any machine, slowly."""
    (B, P, V), column = y_BPV.shape, lambda b, p: (b, p, 0)
    R = next(r for r in range(max(ROWS, STEP // V // ROWS * ROWS), 0, -ROWS) if P % r == 0)
    one, all_ = pl.BlockSpec((1, R, 1), column), pl.BlockSpec((1, R, V), column)
    cycles = (CYCLES if terms.softcap is None else CAPPED) * y_BPV.size // REGISTER
    with kernel_scope(0, LANES, cycles):  # no products of matrices
        *told, dy_BPV = pl.pallas_call(
            functools.partial(_kernel, terms),
            grid=(B, P // R),
            in_specs=[all_, one, one],
            out_specs=[one] * 3 + [all_],
            out_shape=[jax.ShapeDtypeStruct((B, P, 1), jnp.float32)] * 3
            + [jax.ShapeDtypeStruct((B, P, V), jnp.bfloat16)],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=12 * R * V + 2**23
            ),
            interpret=interpret,
        )(y_BPV, targets_BP[:, :, None], mask_BP[:, :, None])
    return Told(*(x[:, :, 0] for x in told)), dy_BPV


def _kernel(terms: Terms, y, targets, mask, loss, nll, correct, dy):
    R, V = y.shape[1:]
    lane_RL = places(1, (R, LANES))
    wide = lambda x_R1: jnp.broadcast_to(x_R1, (R, LANES))  # noqa: E731
    target_RL, mask_RL = wide(targets[0]), wide(mask[0])

    def over(step, start):
        """step(its logits' place, z, slope, whether each is the target, carry) for each register of tokens."""

        def one(n, carry):
            at = pl.ds(pl.multiple_of(n * LANES, LANES), LANES)
            return step(at, *token_loss.capped(y[0, :, at], terms), lane_RL == target_RL - n * LANES, carry)

        turns = V // LANES
        return jax.lax.fori_loop(0, turns, one, start, unroll=TOGETHER)

    top_RL = over(lambda at, z, slope, hit, top: jnp.maximum(top, z), jnp.full((R, LANES), -jnp.inf))
    top_RL = wide(jnp.max(top_RL, axis=1, keepdims=True))

    def add(at, z, slope, hit, sums):
        exp, target, total = sums
        return exp + jnp.exp(z - top_RL), target + jnp.where(hit, z, 0.0), total + z if terms.smoothing else total

    zeros = jnp.zeros((R, LANES))
    exp, target, total = (jnp.sum(x, axis=1, keepdims=True) for x in over(add, (zeros,) * 3))
    told, lse_R1 = token_loss.loss(Sums(top_RL[:, :1], exp, target, total / V), terms)
    loss[0], nll[0], correct[0] = told
    lse_RL = wide(lse_R1)

    def write(at, z, slope, hit, _):
        dy[0, :, at] = token_loss.gradient(z, slope, hit, lse_RL, mask_RL, V, terms).astype(dy.dtype)
        return ()

    over(write, ())


def on_each_device(y_BPV, targets_BP, mask_BP, terms: Terms, mesh=None, rules: Rules = RULES):
    """`by_kernel` by each device of the mesh for its tokens."""

    def specs():
        logits, tokens = (pspec(AXES[:n], y_BPV.shape[:n], mesh, rules) for n in (3, 2))
        return (logits, tokens, tokens), (Told(tokens, tokens, tokens), logits)

    return spread.on_each_device(functools.partial(by_kernel, terms=terms), (y_BPV, targets_BP, mask_BP), mesh, specs)
