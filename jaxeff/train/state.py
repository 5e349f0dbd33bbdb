"""The training state: everything that a step reads and writes, and how it lies on a mesh."""

import dataclasses
from typing import TYPE_CHECKING, Any
from zlib import crc32

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxeff.core.sharding import shardings as param_shardings
from jaxeff.core.tree import combine, map_with_path, paths

if TYPE_CHECKING:
    from flax.training.dynamic_scale import DynamicScale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What changes from step to step, and the runtime values of the run (lr, steps, seed), which do not recompile it.

    step: int32, optimizer steps done, skipped ones too. params: the weights that train, float32 masters; frozen: the others, each
    None where the other has the leaf. opt: optax's state. ema: like params, or None. scale: the dynamic loss scale of float16, or
    None. skipped, bad: int32, non-finite steps so far and in a row. lr: float32, the peak. steps: int32, the length of the run.
    seed: uint32; every random number derives from it and, within a step, from `step`. memory: what transforms keep between
    steps.
    """

    step: jax.Array
    params: Any
    frozen: Any
    opt: Any
    ema: Any
    scale: "DynamicScale | None"
    skipped: jax.Array
    bad: jax.Array
    lr: jax.Array
    steps: jax.Array
    seed: jax.Array
    memory: Any = None

    @property
    def key(self) -> jax.Array:
        """The key of this step's random numbers; initial values fold in paths, this a name and the step."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), crc32(b"step")), self.step)

    @property
    def weights(self):
        """The weights to evaluate, frozen ones included: the moving average where there is one."""
        return combine(self.params if self.ema is None else self.ema, self.frozen)


def init_state(
    params, frozen, tx, *, ema: bool, scaled: bool, seed: jax.Array, lr: jax.Array, steps: jax.Array, memory: Any = None
) -> State:
    """The state of a run that has not begun, from its initial weights; pure, to be jitted with sharded outputs.

    seed: uint32, lr: float32, steps: int32 scalars.
    """
    # Distinct buffers: the state is donated, and one buffer cannot be given away twice.
    zero = [jnp.zeros((), jnp.int32) for _ in range(3)]
    scale = _loss_scale() if scaled else None
    average = jax.tree.map(jnp.copy, params) if ema else None
    return State(zero[0], params, frozen, tx.init(params), average, scale, zero[1], zero[2], lr, steps, seed, memory)


def _loss_scale() -> "DynamicScale":
    from flax.training.dynamic_scale import DynamicScale  # brings all of Linen with it

    return DynamicScale(fin_steps=jnp.zeros((), jnp.int32), scale=jnp.full((), 2.0**16, jnp.float32))


def state_shardings(state: State, specs, mesh) -> State:
    """A NamedSharding for each leaf of an abstract state.

    A leaf whose path ends with a parameter's path, and which has its shape, lies where that parameter lies: moments and
    averages. Everything else is replicated.
    """
    laid = paths(param_shardings(specs, mesh))
    shapes = {path: spec.shape for path, spec in paths(specs).items()}
    replicated = NamedSharding(mesh, PartitionSpec())

    def one(path: str, leaf):
        parts = path.split("/")
        ends = ("/".join(parts[i:]) for i in range(1, len(parts)))
        return next((laid[end] for end in ends if shapes.get(end) == leaf.shape), replicated)

    return map_with_path(one, state)
