"""RetNet (Sun et al. 2023, "Retentive network"). B batch, T time, D model, H heads, C key dim, E value dim.

    q, k = rope(x Wq), rope(x Wk);  v, z = x Wv, x Wz;    log a_h = log(1 - 2^(-5 - h))
    S_t = a S_{t-1} + k_t v_t^T;    o_t = S_t^T q_t / sqrt(C);    y = sum_h norm(o) silu(z) Wo_h

Per head a linear attention whose past fades by one constant rate: half of it is gone after 22 tokens in the first head, after
twice as many in each next one. The rotation tells distances apart, as in softmax attention.

GLA is this mixer with a gate: it says in one method what its state forgets.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.core.recompute import checkpoint
from jaxeff.core.spec import Spec, residual
from jaxeff.mixers.base import Ctx, Out, at_least_one, project, width
from jaxeff.mixers.norm import Norm, RMSNorm
from jaxeff.mixers.state import check_state
from jaxeff.ops.gated_linear import gated_linear
from jaxeff.ops.rope import Rope, rope
from jaxeff.ops.segments import Row, empty_row, zero_padding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RetNetState:
    """S: float32 [B, H, C, E]."""

    S: jax.Array
    row: Row


@dataclasses.dataclass(frozen=True)
class RetNet:
    """Multi-scale retention; sizes left None derive from `d_model`.

    n_heads: H, the published 8, or the largest number below whose keys are as wide as they should be. key_dim: C, D / H.
    value_dim: E, 2 C. rope None: no positions. norm: of o over E, with one scale for all heads.

    Cost per token: 2 x parameters + about 2 H (2 C E + 64 (C + E)) FLOPs at any length, in decoding 2 x parameters + 4 H C E.
    State: H C E float32 numbers per sequence.

    Parameters: d_model * heads * (2 * key + 3 * value) + norm.size * value

    Differs from the published code in the initial values of the projections, which are the library's own for all mixers.

    Raises ValueError for sizes that cannot be.
    """

    d_model: int | None = None
    n_heads: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    rope: Rope | None = Rope()
    norm: Norm = RMSNorm(eps=1e-5)

    most_heads: ClassVar[int] = 8  # H where it is not given and D allows
    narrowing: ClassVar[int] = 1  # D / (H C) where C is not given

    def __post_init__(self):
        at_least_one(self, "d_model", "n_heads", "key_dim", "value_dim")
        if self.d_model is not None:
            self.specs()

    @property
    def heads(self) -> int:
        """H."""
        return self.n_heads or max(self._head_counts(self.most_heads), default=1)

    @property
    def key(self) -> int:
        """C."""
        d, h, name = width(self), self.heads, type(self).__name__
        if self.key_dim is None and h not in self._head_counts(h):
            counts = self._head_counts(d)
            hint = f"choose {_nearest(counts, h)} or set key_dim" if counts else "set key_dim"
            raise ValueError(
                f"{name}.n_heads={h} heads do not share {d // self.narrowing} key channels {self._evenly}: {hint}"
            )
        c = self.key_dim or d // (self.narrowing * h)
        if not self._turns(c):
            even = [n for n in range(1, c + int(4 / self.rope.fraction) + 2) if self._turns(n)]
            raise ValueError(f"{name}.key_dim={c} is not rotated in pairs; the nearest that is: {_nearest(even, c)}")
        return c

    @property
    def value(self) -> int:
        """E."""
        return self.value_dim or 2 * self.key

    @property
    def _evenly(self) -> str:
        return "evenly" if self.rope is None else "evenly and in pairs"

    def _turns(self, key: int) -> bool:
        """Whether keys of this width can be rotated, if they are to be."""
        try:
            return self.rope is None or self.rope.width(key) > 0
        except ValueError:
            return False

    def _head_counts(self, most: int) -> list[int]:
        """Numbers of heads, up to `most`, that D channels can be cut into."""
        d, narrow = width(self), self.narrowing
        return [n for n in range(1, most + 1) if d % (narrow * n) == 0 and self._turns(d // (narrow * n))]

    def specs(self):
        """`q`, `k`, `v`, `z`, `o`; `norm`; what the gate of the state takes."""
        d, h, c, e = width(self), self.heads, self.key, self.value
        widths = {"q": c, "k": c, "v": e, "z": e}
        specs = {name: Spec((d, h, n), ("embed", "heads", "head_dim")) for name, n in widths.items()}
        specs |= {
            "norm": self.norm.specs((e,), ("head_dim",)),
            "o": Spec((h, e, d), ("heads", "head_dim", "embed"), residual, n_in=2),
        }
        return specs | self._forget_specs()

    def _forget_specs(self):
        return {}

    def _log_a(self, params, x_BTD) -> jax.Array:
        """log of what is kept of the state, float32 [B, T, H] or [B, T, H, C]."""
        log_a_H = jnp.asarray(np.log1p(-(2.0 ** (-5.0 - np.arange(self.heads)))), jnp.float32)
        return jnp.broadcast_to(log_a_H[None, None], (*x_BTD.shape[:2], self.heads))

    def init_state(self, batch: int, max_len: int, dtype) -> RetNetState:
        """An empty state; float32 whatever `dtype`, and as large for any `max_len`."""
        S_BHCE = jnp.zeros((batch, self.heads, self.key, self.value), jnp.float32)
        return RetNetState(S_BHCE, empty_row(batch))

    def apply(self, params, x_BTD: jax.Array, state: RetNetState | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        check_state(self, state, x_BTD)
        S_BHCE, row = (None, None) if state is None else (state.S, state.row)
        tokens, row = ctx.tokens(x_BTD, row)
        q, k, v, z_BTHE = (project(params, name, "btd,dhc->bthc", x_BTD) for name in "qkvz")
        o_BTHE, S_BHCE = checkpoint(self._mix)(params, x_BTD, q, k, v, S_BHCE, tokens)
        o_BTHE = checkpoint(self._gate)(params["norm"], o_BTHE, z_BTHE)
        y_BTD = project(params, "o", "bthe,hed->btd", o_BTHE)
        return Out(y_BTD, None if state is None else RetNetState(S_BHCE, row))

    def _mix(self, params, x_BTD, q_BTHC, k_BTHC, v_BTHE, S_BHCE, tokens):
        """(o_BTHE in v's dtype, S): the recurrence."""
        q_BTHC, k_BTHC = q_BTHC.astype(jnp.float32) * self.key**-0.5, k_BTHC.astype(jnp.float32)
        if self.rope is not None:
            q_BTHC, k_BTHC = (rope(x, tokens.position, self.rope) for x in (q_BTHC, k_BTHC))
        k_BTHC = zero_padding(k_BTHC, tokens.valid)  # adds nothing
        log_a = zero_padding(self._log_a(params, x_BTD), tokens.valid)  # forgets nothing
        o_BTHE, S_BHCE = gated_linear(q_BTHC, k_BTHC, v_BTHE, log_a, S_BHCE, tokens.start, recompute=False)
        return o_BTHE.astype(v_BTHE.dtype), S_BHCE

    def _gate(self, params, o_BTHE, z_BTHE):
        """norm(o) silu(z), rounded once."""
        o_BTHE = self.norm.apply(params, o_BTHE.astype(jnp.float32)) * jax.nn.silu(z_BTHE.astype(jnp.float32))
        return o_BTHE.astype(z_BTHE.dtype)


def _nearest(counts: list[int], n: int) -> int:
    return min(counts, key=lambda count: (abs(count - n), count))
