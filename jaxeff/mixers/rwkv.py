"""What the RWKV mixers share: the token shift with its state, mixes with the token before, initial values that follow depth.

B batch, T time, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Site, Spec
from jaxeff.mixers.base import Ctx
from jaxeff.mixers.mlp import relu_squared
from jaxeff.ops.conv import token_shift
from jaxeff.ops.segments import Row, Tokens, empty_row


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShiftState:
    """x: the last input [B, D]."""

    x: jax.Array
    row: Row


def empty_shift(batch: int, d_model: int, dtype) -> ShiftState:
    """No input yet."""
    return ShiftState(jnp.zeros((batch, d_model), dtype), empty_row(batch))


def shifted(x_BTD: jax.Array, state: ShiftState | None, ctx: Ctx) -> tuple[jax.Array, ShiftState | None, Tokens]:
    """(x one token back, the state after, what `ctx` says of the tokens); the state None exactly when none is passed."""
    last_BD, row = (None, None) if state is None else (state.x, state.row)
    tokens, row = ctx.tokens(x_BTD, row)
    before_BTD, after_BD = token_shift(x_BTD, last_BD, tokens.valid, tokens.start)
    return before_BTD, None if state is None else ShiftState(after_BD.astype(last_BD.dtype), row), tokens


@jax.checkpoint
def lerp(x_BTD: jax.Array, before_BTD: jax.Array, share: jax.Array) -> jax.Array:
    """x_t + share (x_{t-1} - x_t), rounded once. share: of the token before, [D] or [B, T, D]."""
    share = share.astype(jnp.float32).reshape((1,) * (3 - share.ndim) + share.shape)
    x32_BTD = x_BTD.astype(jnp.float32)
    return (x32_BTD + share * (before_BTD.astype(jnp.float32) - x32_BTD)).astype(x_BTD.dtype)


@jax.checkpoint
def squared(k: jax.Array) -> jax.Array:
    """max(k, 0)^2, rounded once."""
    return relu_squared(k.astype(jnp.float32)).astype(k.dtype)


def depth(site: Site):
    """0 in the first layer to 1 in the last one; 0 where there is but one."""
    return site.layer / max(site.n_layers - 1, 1)


@dataclasses.dataclass(frozen=True)
class Current:
    """(i / D)^(power (1 - l / L)^exponent) + rise l / (L - 1) for channel i of D in layer l of L: ever more of the token itself."""

    power: float = 1.0
    rise: float = 0.0
    exponent: float = 1.0

    def __call__(self, key, shape, dtype, site: Site):
        fraction_D = jnp.arange(shape[0], dtype=jnp.float32) / shape[0]
        power = self.power * (1.0 - site.layer / site.n_layers) ** self.exponent
        return (fraction_D**power + self.rise * depth(site)).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Before(Current):
    """1 - `Current`: ever less of the token before."""

    def __call__(self, key, shape, dtype, site: Site):
        return (1.0 - super().__call__(key, shape, jnp.float32, site)).astype(dtype)


def mixes(prefix: str, d_model: int, **inits: Current) -> dict[str, Spec]:
    """`<prefix>_<name>`, a share for each channel; no matrices, so weight decay spares them."""
    return {f"{prefix}_{name}": Spec((d_model,), ("embed",), init, n_in=0) for name, init in inits.items()}
