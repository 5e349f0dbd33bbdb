"""The short causal convolution that Mamba, the delta rule's mixers and Griffin put before their recurrence, as a value: a type
with its settings, which declares its parameters, makes its state and applies them. B batch, T time, W width."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxeff.core.errors import lookup
from jaxeff.core.spec import Site, Spec
from jaxeff.core.weight import dense
from jaxeff.mixers.base import Ctx, at_least_one
from jaxeff.mixers.mlp import ACTIVATIONS
from jaxeff.ops.conv import causal_conv
from jaxeff.ops.segments import Tokens


@dataclasses.dataclass(frozen=True)
class UniformFan:
    """Uniform in +-1 / sqrt(fan), as PyTorch's convolutions start."""

    fan: int

    def __call__(self, key, shape, dtype, site: Site):
        bound = self.fan**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)


@dataclasses.dataclass(frozen=True)
class ShortConv:
    """y_t = act(bias + sum_i w_{W-1-i} x_{t-i}), each channel by itself.

    width: W. bias: whether there is one. activation: a key of `mixers.mlp.ACTIVATIONS`, or None.
    """

    width: int = 4
    bias: bool = True
    activation: str | None = "silu"

    def __post_init__(self):
        at_least_one(self, "width")
        if self.activation is not None:
            lookup(ACTIVATIONS, self.activation, "activation")

    def count(self, channels: int) -> int:
        """Parameters."""
        return (self.width + self.bias) * channels

    def specs(self, shape: tuple[int, ...], axes: tuple[str | None, ...]):
        """`w`, the newest token's weights last, and `bias` where there is one, for channels of this shape."""
        init = UniformFan(self.width)
        specs = {"w": Spec((self.width, *shape), ("conv", *axes), init)}
        return specs | {"bias": Spec(shape, axes, init, n_in=0)} if self.bias else specs

    def init_state(self, batch: int, shape: tuple[int, ...], dtype) -> jax.Array:
        """The last W - 1 inputs [B, W - 1, ...]: none yet."""
        return jnp.zeros((batch, self.width - 1, *shape), dtype)

    def apply(
        self,
        params,
        x: jax.Array,
        taps: jax.Array | None,
        tokens: Tokens,
        axis: str | None = None,
        ctx: Ctx = Ctx(),
    ) -> tuple[jax.Array, jax.Array | None]:
        """(y [B, T, ...], the taps after these tokens), the latter None exactly when none are passed. axis: the logical axis of the
        first dimension of the channels."""
        B, T, *shape = x.shape
        D = math.prod(shape)
        bias = params.get("bias")
        y_BTD, after_BWD = causal_conv(
            x.reshape(B, T, D),
            dense(params["w"], jnp.float32).reshape(-1, D),
            None if bias is None else bias.reshape(D),
            None if taps is None else taps.reshape(B, -1, D),
            tokens.valid,
            tokens.start,
            activation=None if self.activation is None else ACTIVATIONS[self.activation],
            mesh=ctx.mesh,
            rules=ctx.rules,
            axis=axis,
        )
        return y_BTD.reshape(x.shape), None if taps is None else after_BWD.reshape(taps.shape).astype(taps.dtype)
