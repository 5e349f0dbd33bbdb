"""Gated DeltaNet (Yang et al. 2024, "Gated delta networks: improving Mamba2 with delta rule"), the linear layer of Qwen3-Next.

    S_t = a_t (1 - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T;    log a_t = -exp(a_log) softplus(x_t Wa + dt_bias)

Beside `deltanet`, with one rate of forgetting a head and token, that of Mamba-2. B batch, T time, D model, H heads.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec
from jaxeff.core.weight import einsum
from jaxeff.mixers.base import width
from jaxeff.mixers.deltanet import DeltaNet
from jaxeff.mixers.discretise import LogUniform, StepBias, step_size


@dataclasses.dataclass(frozen=True)
class GatedDeltaNet(DeltaNet):
    """The gated delta rule; sizes as in `DeltaNet`, but for E, which is 2 C, and an output gate.

    a_range, dt_range: of the initial exp(a_log) (uniform) and of the initial softplus(dt_bias) (log-uniform). Cost and state
    are those of `DeltaNet`. Qwen3-Next sets value_dim = head_dim = 128 and half as many key heads.

    Parameters: d_model * (2 * key_heads * head + (3 if gate else 2) * heads * value + 2 * heads)
        + conv.count(2 * key_heads * head + heads * value) + norm.size * value + 2 * heads

    Raises ValueError for sizes that cannot be.
    """

    gate: bool = True
    a_range: tuple[float, float] = (0.01, 16.0)
    dt_range: tuple[float, float] = (1e-3, 1e-1)

    expand: ClassVar[int] = 2

    def __post_init__(self):
        for name in ("a_range", "dt_range"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(
                    f"{type(self).__name__}.{name} must be (low, high), rising and above 0, found {(low, high)}"
                )
        super().__post_init__()

    def _forget_specs(self):
        """`dt`, `dt_bias`, `a_log`."""
        by_head = dict(shape=(self.heads,), axes=("heads",), dtype=jnp.float32, n_in=0)
        return {
            "dt": Spec((width(self), self.heads), ("embed", "heads")),
            "dt_bias": Spec(**by_head, init=StepBias(*self.dt_range)),
            "a_log": Spec(**by_head, init=LogUniform(*self.a_range)),
        }

    def _log_a(self, params, x_BTD) -> jax.Array:
        dt_BTH = step_size(einsum("btd,dh->bth", x_BTD, params["dt"]), params["dt_bias"])
        return -jnp.exp(params["a_log"].astype(jnp.float32))[None, None] * dt_BTH
