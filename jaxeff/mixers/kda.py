"""Kimi Delta Attention (Kimi Team 2025, "Kimi Linear"). B batch, T time, D model, H heads, C key dim, E value dim, R rank.

    S_t = (1 - beta_t k_t k_t^T) diag(a_t) S_{t-1} + beta_t k_t v_t^T;    log a_t = -exp(a_log) softplus(x_t Wf1 Wf2 + dt_bias)
    y = norm(o) sigmoid(x Wz1 Wz2 + z_bias) Wo

Gated DeltaNet with a rate of forgetting for each key channel.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, zeros
from jaxeff.core.weight import einsum
from jaxeff.mixers.base import project, width
from jaxeff.mixers.discretise import LogUniform, StepBias, step_size
from jaxeff.mixers.gated_deltanet import GatedDeltaNet


@dataclasses.dataclass(frozen=True)
class KDA(GatedDeltaNet):
    """The delta rule with a gate per channel; sizes as in `DeltaNet`, E = C. Both gates have rank R = E.

    Cost per token: as `DeltaNet`, and the decays of each channel, about 30 H C exponentials and products in training. State as
    in `DeltaNet`.

    Parameters: d_model * (2 * key_heads * head + 2 * heads * value + heads)
        + conv.count(2 * key_heads * head + heads * value) + norm.size * value + heads
        + value * (d_model + heads * head) + heads * head
        + ((value * (d_model + heads * value) + heads * value) if gate else 0)

    Raises ValueError for sizes that cannot be.
    """

    a_range: tuple[float, float] = (1.0, 16.0)

    expand: ClassVar[int] = 1

    def _output_gate_specs(self):
        """`z_low`, `z`, `z_bias`."""
        h, e = self.heads, self.value
        specs = {
            "z_low": Spec((width(self), e), ("embed", "rank")),
            "z": Spec((e, h, e), ("rank", "heads", "head_dim")),
            "z_bias": Spec((h, e), ("heads", "head_dim"), zeros, n_in=0),
        }
        return specs if self.gate else {}

    def _output_gate(self, params, x_BTD) -> jax.Array | None:
        if not self.gate:
            return None
        low_BTR = project(params, "z_low", "btd,dr->btr", x_BTD)
        return jax.nn.sigmoid(project(params, "z", "btr,rhe->bthe", low_BTR).astype(jnp.float32))

    def _forget_specs(self):
        """`dt_low`, `dt`, `dt_bias`, `a_log`."""
        h, c, e = self.heads, self.head, self.value
        exact = dict(dtype=jnp.float32, n_in=0)
        return {
            "dt_low": Spec((width(self), e), ("embed", "rank")),
            "dt": Spec((e, h, c), ("rank", "heads", "head_dim")),
            "dt_bias": Spec((h, c), ("heads", "head_dim"), StepBias(*self.dt_range), **exact),
            "a_log": Spec((h,), ("heads",), LogUniform(*self.a_range), **exact),
        }

    def _log_a(self, params, x_BTD) -> jax.Array:
        low_BTR = einsum("btd,dr->btr", x_BTD, params["dt_low"])
        dt_BTHC = step_size(einsum("btr,rhc->bthc", low_BTR, params["dt"]), params["dt_bias"])
        return -jnp.exp(params["a_log"].astype(jnp.float32))[None, None, :, None] * dt_BTHC
