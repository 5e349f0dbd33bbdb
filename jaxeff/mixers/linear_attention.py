"""Linear attention (Katharopoulos et al. 2020). B batch, T time, D model, H heads, C head dim, Q query and key dim, N features.

    S_t = S_{t-1} + phi(k_t) v_t^T,  z_t = z_{t-1} + phi(k_t);   y_t = sum_h (S_t^T phi(q_t)) / (z_t . phi(q_t)) Wo_h

A softmax attention whose kernel exp(q . k) is replaced by a product of features phi(q) . phi(k), so that the past fits a state
of fixed size. The past is summed without order: nothing but the causal mask tells positions apart.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.core.errors import lookup
from jaxeff.core.recompute import checkpoint
from jaxeff.core.spec import Spec, residual
from jaxeff.mixers.base import Ctx, Out, at_least_one, biased, project, width
from jaxeff.mixers.heads import head_count, head_width
from jaxeff.mixers.state import check_state
from jaxeff.ops.gated_linear import gated_linear
from jaxeff.ops.norm import rms_norm
from jaxeff.ops.segments import Row, empty_row, zero_padding

# Below this the normaliser is taken for it: features that are all zero (relu) give 0, not NaN.
FLOOR = 1e-6


def elu(x: jax.Array) -> jax.Array:
    """elu(x) + 1, positive (Katharopoulos et al. 2020)."""
    return jax.nn.elu(x) + 1.0


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0): sparse, and zero for a query without positive channel."""
    return jax.nn.relu(x)


def softmax(x: jax.Array) -> jax.Array:
    """softmax over the channels (Shen et al. 2018, "Efficient attention")."""
    return jax.nn.softmax(x, axis=-1)


def taylor2(x: jax.Array) -> jax.Array:
    """1 + s + s^2 / 2 with s = q . k / sqrt(Q), the second-order expansion of exp(s) (Arora et al. 2024, "Based").

    Of the products x_i x_j the half i <= j is kept, which leaves phi(q) . phi(k) as it was: N = 1 + Q + Q (Q + 1) / 2.
    """
    n = x.shape[-1]
    i, j = np.triu_indices(n)
    weight = np.where(i == j, 0.5**0.5, 1.0) / n**0.5
    products = x[..., i] * x[..., j] * weight.astype(np.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x * n**-0.25, products], axis=-1)


FEATURES = {"elu": elu, "relu": relu, "softmax": softmax, "taylor2": taylor2}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearState:
    """S and, as its last value column where there is a normaliser, z: float32 [B, H, N, C (+ 1)]."""

    S: jax.Array
    row: Row


@dataclasses.dataclass(frozen=True)
class LinearAttention:
    """Causal linear attention; sizes left None derive from `d_model`.

    head_dim: C, D / n_heads, or 32 below D = 512 and 64 from there. n_heads: D // head_dim. key_dim: Q, head_dim, but at most 16
    for "taylor2", whose state grows with its square. feature_map: a name in FEATURES. normalise: divide by z . phi(q); False
    takes an RMSNorm per head, without parameters, in its place (Qin et al. 2022, "The devil in linear transformer").
    biases: names among q, k, v, o.

    Cost per token: 2 x parameters + about 2 H (2 N C + 64 (N + C)) FLOPs at any length, in decoding 2 x parameters + 4 H N C.
    State: H N (C + 1) float32 numbers per sequence. N = Q, for "taylor2" 1 + Q + Q (Q + 1) / 2.

    Parameters: d_model * heads * (2 * key + 2 * head)
        + (("q" in biases) + ("k" in biases)) * heads * key + ("v" in biases) * heads * head + ("o" in biases) * d_model

    Raises ValueError for sizes that cannot be.
    """

    d_model: int | None = None
    n_heads: int | None = None
    head_dim: int | None = None
    feature_map: Literal["elu", "relu", "softmax", "taylor2"] = "elu"
    normalise: bool = True
    key_dim: int | None = None
    biases: tuple[str, ...] = ()

    def __post_init__(self):
        lookup(FEATURES, self.feature_map, "feature map")
        at_least_one(self, "d_model", "n_heads", "head_dim", "key_dim")
        if self.d_model is not None:
            self.specs()

    @property
    def heads(self) -> int:
        """H."""
        return head_count(self)

    @property
    def head(self) -> int:
        """C."""
        return head_width(self)

    @property
    def key(self) -> int:
        """Q."""
        if self.key_dim is not None:
            return self.key_dim
        return min(self.head, 16) if self.feature_map == "taylor2" else self.head

    @property
    def features(self) -> int:
        """N."""
        return 1 + self.key + self.key * (self.key + 1) // 2 if self.feature_map == "taylor2" else self.key

    def specs(self):
        """`q`, `k`, `v`, `o`; `<name>_bias`."""
        d, h, q, c = width(self), self.heads, self.key, self.head
        specs = {
            "q": Spec((d, h, q), ("embed", "heads", "head_dim")),
            "k": Spec((d, h, q), ("embed", "heads", "head_dim")),
            "v": Spec((d, h, c), ("embed", "heads", "head_dim")),
            "o": Spec((h, c, d), ("heads", "head_dim", "embed"), residual, n_in=2),
        }
        return biased(specs, self.biases, self)

    def init_state(self, batch: int, max_len: int, dtype) -> LinearState:
        """An empty state; float32 whatever `dtype`, and as large for any `max_len`."""
        S_BHNC = jnp.zeros((batch, self.heads, self.features, self.head + self.normalise), jnp.float32)
        return LinearState(S_BHNC, empty_row(batch))

    def apply(self, params, x_BTD: jax.Array, state: LinearState | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        check_state(self, state, x_BTD)
        S_BHNC, row = (None, None) if state is None else (state.S, state.row)
        tokens, row = ctx.tokens(x_BTD, row)
        qkv = [project(params, name, "btd,dhc->bthc", x_BTD) for name in "qkv"]
        # Features are many times the size of q and k (taylor2) or their float32 copies: made again in the backward pass.
        o_BTHC, S_BHNC = checkpoint(self._mix)(*qkv, S_BHNC, tokens.valid, tokens.start)
        y_BTD = project(params, "o", "bthc,hcd->btd", o_BTHC)
        return Out(y_BTD, None if state is None else LinearState(S_BHNC, row))

    def _mix(self, q_BTHQ, k_BTHQ, v_BTHC, S_BHNC, valid_BT, start_BT):
        """The recurrence over features, normalised: (o_BTHC in v's dtype, S)."""
        phi = FEATURES[self.feature_map]
        q_BTHN, k_BTHN = phi(q_BTHQ.astype(jnp.float32)), phi(k_BTHQ.astype(jnp.float32))
        k_BTHN = zero_padding(k_BTHN, valid_BT)
        if self.normalise:
            v_BTHC = jnp.concatenate([v_BTHC, jnp.ones_like(v_BTHC[..., :1])], axis=-1)  # its sum is z . phi(q)
        o_BTHC, S_BHNC = gated_linear(q_BTHN, k_BTHN, v_BTHC, None, S_BHNC, start_BT, recompute=False)
        if self.normalise:
            o_BTHC = o_BTHC[..., :-1] / jnp.maximum(o_BTHC[..., -1:], FLOOR)
        else:
            o_BTHC = rms_norm(o_BTHC)
        return o_BTHC.astype(v_BTHC.dtype), S_BHNC
