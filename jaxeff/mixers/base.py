"""The contract of every mixer. B batch, T time, D model.

A mixer is a frozen dataclass of sizes. It holds no arrays, so it is hashable, printable and static under `jax.jit`; its
parameters are a tree of plain arrays (or weight nodes) declared by `specs()`.

    y_BTD, _ = mixer.apply(params, x_BTD)                       # training: the whole sequence, no state
    y_BTD, state = mixer.apply(params, prompt_BTD, state)       # prefill
    y_B1D, state = mixer.apply(params, x_B1D, state)            # one decode step is the same call with T = 1
"""

import dataclasses
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from jaxeff.core.precision import POLICIES, Policy
from jaxeff.core.sharding import constrain
from jaxeff.core.spec import Spec, zeros
from jaxeff.core.weight import einsum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ctx:
    """What a layer may need to know about its input beside the input itself.

    positions: int32 [B, T] or None, which counts from 0, or goes on from the state. segment_ids: int32 [B, T], 0 for padding,
    or None for one segment that goes on from the state. shared: values that cross layers, by name. policy, mesh: static.
    """

    positions: jax.Array | None = None
    segment_ids: jax.Array | None = None
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)
    policy: Policy = dataclasses.field(default=POLICIES["float32"], metadata={"static": True})
    mesh: Any = dataclasses.field(default=None, metadata={"static": True})

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """x laid out on the mesh by its logical axes; x itself where there is no mesh."""
        return constrain(x, axes, self.mesh)


class Mixer(Protocol):
    """A sequence or channel mixer; see the module docstring. Segment id 0 leaves every state untouched."""

    d_model: int | None

    def specs(self) -> dict[str, Any]:
        """Tree of `Spec`."""

    def init_state(self, batch: int, max_len: int, dtype) -> Any:
        """An empty decode state, a pytree; its size does not grow with max_len for recurrent mixers."""

    def apply(self, params, x_BTD: jax.Array, state=None, *, ctx: Ctx = Ctx()) -> tuple[jax.Array, Any]:
        """(y_BTD, new state); the state is None exactly when none was passed."""


Part = TypeVar("Part")


def bind(part: Part, d_model: int) -> Part:
    """`part` with its open `d_model` filled in. Raises ValueError when it was made for another width."""
    if part.d_model is None:
        return dataclasses.replace(part, d_model=d_model)
    if part.d_model != d_model:
        raise ValueError(f"{type(part).__name__}(d_model={part.d_model}) cannot stand in a model of d_model={d_model}")
    return part


def width(part) -> int:
    """`part.d_model`, once it is known. Raises ValueError when the part is used before it was given a width."""
    if part.d_model is None:
        raise ValueError(f"{type(part).__name__} has no d_model: write {type(part).__name__}(d_model=256)")
    return part.d_model


def segment_ids(ctx: Ctx, shape_BT: tuple[int, int], last_B: jax.Array | None = None) -> jax.Array:
    """The segment ids of this call; by default one segment, which goes on from `last_B`, the state's last non-zero id."""
    if ctx.segment_ids is not None:
        return ctx.segment_ids
    if last_B is None:
        return jnp.ones(shape_BT, jnp.int32)
    return jnp.broadcast_to(jnp.maximum(last_B, 1)[:, None], shape_BT)


def biases(specs: dict[str, Spec]) -> dict[str, Spec]:
    """A zero bias `<name>_bias` for the outputs of each weight."""
    return {f"{n}_bias": Spec(s.shape[s.n_in :], s.axes[s.n_in :], zeros, n_in=0) for n, s in specs.items()}


def project(params, name: str, eqn: str, x_BTD: jax.Array) -> jax.Array:
    """`einsum(eqn, x, params[name])` plus `params[name_bias]` where there is one."""
    y = einsum(eqn, x_BTD, params[name])
    bias = params.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(y.dtype)[None, None]
