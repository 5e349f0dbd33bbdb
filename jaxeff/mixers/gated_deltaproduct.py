"""Gated DeltaProduct (Siems et al. 2025, "DeltaProduct: improving state-tracking in linear RNNs via Householder products").

    S_t0 = a_t S_{t-1};    S_tj = (1 - beta_tj k_tj k_tj^T) S_t,j-1 + beta_tj k_tj v_tj^T,  j = 1 .. n;    S_t = S_tn

Gated DeltaNet that takes n steps of the delta rule for each token, each with its own key, value and beta: a product of n
reflections turns the state as no single one can. B batch, T time, D model, H heads, C key dim, E value dim.
"""

import dataclasses

import jax.numpy as jnp
from einops import rearrange

from jaxeff.mixers.base import at_least_one
from jaxeff.mixers.gated_deltanet import GatedDeltaNet


@dataclasses.dataclass(frozen=True)
class GatedDeltaProduct(GatedDeltaNet):
    """n delta steps a token; sizes as in `GatedDeltaNet`. steps: n. negative: by default, as published.

    Cost per token: n times the recurrence of `DeltaNet`; 2 x parameters for the projections. State as in `DeltaNet`, with
    (W - 1) ((1 + n) K C + n H E) last inputs of the convolutions.

    Parameters: d_model * ((1 + steps) * key_heads * head + (1 + steps + (1 if gate else 0)) * heads * value + (1 + steps) * heads)
        + conv.count((1 + steps) * key_heads * head + steps * heads * value) + norm.size * value + 2 * heads

    Raises ValueError for sizes that cannot be.
    """

    negative: bool = True
    steps: int = 2

    def __post_init__(self):
        at_least_one(self, "steps")
        super().__post_init__()

    def _recur(self, q_BTHC, k_BTHC, v_BTHE, beta_BTH, log_a, S_BHCE, start_BT, **spread):
        n = self.steps

        def apart(x):
            return rearrange(x, "b t (n h) ... -> b (t n) h ...", n=n)

        def among(x, j: int):
            """x as that of step j of its token, zeros as those of the others: [B, T, ...] -> [B, T n, ...]."""
            x = jnp.pad(x[:, :, None], ((0, 0), (0, 0), (j, n - 1 - j)) + ((0, 0),) * (x.ndim - 2))
            return rearrange(x, "b t n ... -> b (t n) ...")

        first = None if start_BT is None else among(start_BT, 0)
        q_BTHC, log_a = among(q_BTHC, n - 1), among(log_a, 0)
        kvb = (apart(x) for x in (k_BTHC, v_BTHE, beta_BTH))
        o_BTHE, S_BHCE = super()._recur(q_BTHC, *kvb, log_a, S_BHCE, first, **spread)
        return o_BTHE[:, n - 1 :: n], S_BHCE
