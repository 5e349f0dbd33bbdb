"""Norms as values: a type with its settings, which declares its parameters and applies them. D model."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, ones, zeros
from jaxeff.ops.norm import layer_norm, rms_norm


@dataclasses.dataclass(frozen=True)
class RMSNorm:
    """x / rms(x) * scale (Zhang and Sennrich 2019).

    eps: added to the mean square. unit_offset: the parameter is scale - 1 and starts at zero (Gemma), so that weight decay draws
    the scale to one.
    """

    eps: float = 1e-6
    unit_offset: bool = False

    def __post_init__(self):
        _check_eps(self)

    @property
    def size(self) -> int:
        """Parameters a channel."""
        return 1

    def specs(self, shape: tuple[int, ...], axes: tuple[str | None, ...]):
        """`scale`."""
        return {"scale": Spec(shape, axes, zeros if self.unit_offset else ones, n_in=0)}

    def apply(self, params, x: jax.Array, axes: int | tuple[int, ...] = 1) -> jax.Array:
        """x normalised over these axes, or over so many of its last; the parameters' shape is any trailing shape of x's."""
        scale = params["scale"]
        return rms_norm(x, scale.astype(jnp.float32) + 1 if self.unit_offset else scale, self.eps, axes)


@dataclasses.dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / std * scale + bias (Ba et al. 2016). eps: added to the variance. bias False leaves the bias out."""

    eps: float = 1e-5
    bias: bool = True

    def __post_init__(self):
        _check_eps(self)

    @property
    def size(self) -> int:
        """Parameters a channel."""
        return 1 + self.bias

    def specs(self, shape: tuple[int, ...], axes: tuple[str | None, ...]):
        """`scale`, and `bias` where there is one."""
        specs = {"scale": Spec(shape, axes, ones, n_in=0)}
        return specs | {"bias": Spec(shape, axes, zeros, n_in=0)} if self.bias else specs

    def apply(self, params, x: jax.Array, axes: int | tuple[int, ...] = 1) -> jax.Array:
        """x normalised over these axes, or over so many of its last; the parameters' shape is any trailing shape of x's."""
        return layer_norm(x, params["scale"], params.get("bias"), self.eps, axes)


Norm = RMSNorm | LayerNorm


def _check_eps(norm: Norm) -> None:
    if not norm.eps > 0:
        raise ValueError(f"{type(norm).__name__}.eps must be above 0, found {norm.eps}")
