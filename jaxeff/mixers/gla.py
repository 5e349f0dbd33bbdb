"""GLA (Yang et al. 2023, "Gated linear attention transformers"). B batch, T time, D model, H heads, C key dim, E value dim, R rank.

    q, k, v, z = x Wq, x Wk, x Wv, x Wz;    log a = log sigmoid(x Wl Wa + a_bias) / tau
    S_t = diag(a_t) S_{t-1} + k_t v_t^T;    o_t = S_t^T q_t / sqrt(C);    y = sum_h norm(o) silu(z) Wo_h

Beside `retnet`, with a rate of forgetting for each key channel, read from the token, in place of the constant rates and the
rotation. The temperature tau keeps a near one, so that the state remembers for long at the start of training.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, zeros
from jaxeff.core.weight import einsum
from jaxeff.mixers.base import at_least_one, width
from jaxeff.mixers.retnet import RetNet
from jaxeff.ops.rope import Rope


@dataclasses.dataclass(frozen=True)
class GLA(RetNet):
    """Gated linear attention; sizes left None derive from `d_model`.

    n_heads: H, the published 4, or the largest number below that cuts D / 2 channels evenly. key_dim: C, D / 2 H. value_dim: E,
    2 C. rank: R, of the gate. temperature: tau. norm: of o over E, with one scale for all heads. rope: none as published.

    Cost per token: 2 x parameters + about 2 H (2 C E + 64 (C + E)) FLOPs at any length, and about 22 H C exponentials, sums and
    products for the decays of each channel; in decoding 2 x parameters + 4 H C E. State: H C E float32 numbers per sequence.

    Parameters: d_model * heads * (2 * key + 3 * value) + norm.size * value + rank * (d_model + heads * key) + heads * key

    Differs from the published code in the initial values of the projections, which are the library's own for all mixers.

    Raises ValueError for sizes that cannot be.
    """

    rope: Rope | None = None
    rank: int = 16
    temperature: float = 16.0

    most_heads: ClassVar[int] = 4
    narrowing: ClassVar[int] = 2

    def __post_init__(self):
        at_least_one(self, "rank")
        if not self.temperature > 0:
            raise ValueError(f"GLA.temperature must be above 0, found {self.temperature}; published is 16")
        super().__post_init__()

    def _forget_specs(self):
        """`a_low`, `a`, `a_bias`."""
        h, c = self.heads, self.key
        return {
            "a_low": Spec((width(self), self.rank), ("embed", "rank")),
            "a": Spec((self.rank, h, c), ("rank", "heads", "head_dim")),
            "a_bias": Spec((h, c), ("heads", "head_dim"), zeros, n_in=0),
        }

    def _log_a(self, params, x_BTD) -> jax.Array:
        logit_BTHC = einsum("btr,rhc->bthc", einsum("btd,dr->btr", x_BTD, params["a_low"]), params["a"])
        logit_BTHC = logit_BTHC.astype(jnp.float32) + params["a_bias"].astype(jnp.float32)[None, None]
        return jax.nn.log_sigmoid(logit_BTHC) / self.temperature
