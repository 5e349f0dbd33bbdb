"""What a model costs: FLOPs of a program, memory of a compiled one, and the time and state of decoding. B batch, T time.

flops(step, state, batch)["total"]        counted in the traced program
memory(compiled)                          from the compiler's own analysis, None where it does not tell
Decoding(lm, params, context=1024)        programs to time, and the bytes of the state
take_turns({name: run, ...}, rounds=5)    seconds of each, measured in turns
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jaxeff.core.precision import POLICIES, Policy
from jaxeff.mixers.base import Ctx
from jaxeff.models.lm import LM

# Primitives that move or relabel numbers without computing any.
FREE = frozenset(
    "reshape broadcast_in_dim transpose convert_element_type reduce_precision slice dynamic_slice dynamic_update_slice "
    "concatenate pad "
    "gather scatter squeeze expand_dims iota rev copy copy_p split stop_gradient bitcast_convert_type device_put "
    "sharding_constraint "
    "random_wrap random_unwrap random_seed random_fold_in random_bits threefry2x32 select_n select_and_gather_add mesh_cast "
    "optimization_barrier full_like create_token name pvary layout_constraint".split()
)
REDUCTIONS = ("reduce_", "arg", "cum")


def flops(function: Callable, *args, **kwargs) -> dict[str, float]:
    """Floating-point operations of `function(*args)`, counted operation by operation in the program that JAX traces.

    Returns {"total", "matmul", "uncounted"}: a matrix product counts 2 per multiply-add, any other operation 1 per element, the
    body of a scan once per turn, a conditional its dearest branch. `uncounted` is the number of loops whose length depends on data
    (counted as one turn) and of opaque kernels (counted as nothing). XLA's `cost_analysis` agrees where there are no loops; it
    counts the body of a loop once.
    args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    closed = jax.make_jaxpr(function)(*args, **kwargs)
    matmul, other, uncounted = map(float, _count(closed.jaxpr))
    return {"total": matmul + other, "matmul": matmul, "uncounted": uncounted}


def _size(var) -> int:
    return math.prod(getattr(var.aval, "shape", ()))


def _inner(params: Mapping) -> list:
    """The jaxprs among an equation's parameters."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, jex.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, jex.Jaxpr):
                found.append(item)
    return found


def _count(jaxpr) -> np.ndarray:
    """[matmul, other, uncounted] of a jaxpr."""
    total = np.zeros(3)
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, _inner(eqn.params)
        if name == "scan":
            total += eqn.params["length"] * _count(inner[0])
        elif name == "while":
            total += _count(eqn.params["body_jaxpr"].jaxpr) + [0, 0, 1]
        elif name == "cond":
            total += max(map(_count, inner), key=lambda c: c[0] + c[1])
        elif name == "pallas_call":
            total += _kernel(eqn, inner[0])
        elif name == "shard_map":
            total += math.prod(eqn.params["mesh"].shape.values()) * _count(inner[0])
        elif name.startswith(("scatter", "custom_jvp", "custom_vjp")) or not inner:
            total += _count(inner[0]) if inner and name.startswith("custom") else _plain(eqn, name)
        else:
            total += sum(map(_count, inner))
    return total


def _plain(eqn, name: str) -> np.ndarray:
    out = eqn.outvars[0]
    if name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        return np.array([2.0 * _size(out) * math.prod(eqn.invars[0].aval.shape[i] for i in contract), 0, 0])
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        per_output = math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return np.array([2.0 * _size(out) * per_output, 0, 0])
    if name in FREE:
        return np.zeros(3)
    if name.startswith("scatter"):
        return np.array([0, float(_size(eqn.invars[-1])), 0])
    if name.startswith(REDUCTIONS):
        return np.array([0, float(_size(eqn.invars[0])), 0])
    opaque = "call" in name or "dot_product" in name or name.startswith("splash")
    return np.array([0, 0, 1]) if opaque else np.array([0, float(_size(out)), 0])


def _kernel(eqn, body) -> np.ndarray:
    estimate = eqn.params.get("cost_estimate")
    if estimate is not None:
        return np.array([float(estimate.flops), 0, 0])
    grid = [n if isinstance(n, int) else 1 for n in eqn.params["grid_mapping"].grid]
    return math.prod(grid) * _count(body)


def memory(compiled) -> dict[str, int] | None:
    """Bytes of a compiled program {"temporary", "arguments", "outputs", "aliased"}; None where the backend does not tell.

    Temporary is what it needs beside its arguments and outputs; aliased outputs lie in donated arguments.
    """
    try:
        found = compiled.memory_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    if found is None:
        return None
    names = {"temporary": "temp", "arguments": "argument", "outputs": "output", "aliased": "alias"}
    return {ours: int(getattr(found, f"{theirs}_size_in_bytes")) for ours, theirs in names.items()}


def state_bytes(lm: LM, context: int, batch: int = 1, dtype=jnp.float32) -> int:
    """Bytes of the decode state for `batch` texts of `context` tokens."""
    state = jax.eval_shape(functools.partial(lm.init_state, batch, context, dtype))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


@dataclasses.dataclass
class Decoding:
    """Two compiled programs: from a prompt of `context` tokens to the first new one, and `n_tokens` greedy steps after it.

    Raises ValueError when the model cannot see that many positions.
    """

    lm: LM
    params: dict
    context: int
    n_tokens: int = 32
    batch: int = 1
    policy: Policy = POLICIES["float32"]

    def __post_init__(self):
        total = self.context + self.n_tokens
        if self.lm.max_positions is not None and total > self.lm.max_positions:
            raise ValueError(
                f"decoding at {self.context} needs {total} positions; the model has max_positions={self.lm.max_positions}"
            )
        lm, ctx, dtype = self.lm, Ctx(policy=self.policy), jnp.dtype(self.policy.compute)
        self._prompt_BT = jnp.broadcast_to(jnp.arange(self.context) % lm.vocab_size, (self.batch, self.context)).astype(
            jnp.int32
        )

        def next_token(params, tokens_BT, state):
            x_BTD, state = lm.hidden(params, tokens_BT, state, ctx)
            return jnp.argmax(lm.logits(params, x_BTD[:, -1:]), axis=-1).astype(jnp.int32), state

        def first(params, prompt_BT):
            return next_token(params, prompt_BT, lm.init_state(self.batch, total, dtype))

        def further(params, token_B1, state):
            def step(carry, _):
                return next_token(params, *carry), None

            return jax.lax.scan(step, (token_B1, state), None, length=self.n_tokens)[0][0]

        self._first, self._further = jax.jit(first), jax.jit(further)
        self._prefilled = jax.block_until_ready(self._first(self.params, self._prompt_BT))
        self.further_tokens()

    def first_token(self):
        """Prefill and the first new token; blocks until it is there."""
        jax.block_until_ready(self._first(self.params, self._prompt_BT)[0])

    def further_tokens(self):
        """`n_tokens` more tokens; blocks until they are there."""
        jax.block_until_ready(self._further(self.params, *self._prefilled))

    @property
    def state_bytes(self) -> int:
        """Bytes kept between tokens after `context` tokens."""
        return state_bytes(self.lm, self.context, self.batch, jnp.dtype(self.policy.compute))


def take_turns(
    runs: Mapping[Any, Callable[[], None]],
    rounds: int = 5,
    warm: int = 1,
    on_round: Callable[[int], None] = lambda turn: None,
) -> dict[Any, float]:
    """Median seconds of each run. They take turns, round after round, so that a slow moment of the machine falls on all.

    The first `warm` rounds are not counted; on_round is told the number of each round before it starts.
    """
    seconds = {name: [] for name in runs}
    for turn in range(warm + rounds):
        on_round(turn)
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}
