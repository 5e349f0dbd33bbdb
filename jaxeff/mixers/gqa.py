"""Softmax attention with grouped key and value heads. B batch, T time, S slots, D model, H query heads, K kv heads, C channels.

    q_h = rope(x Wq_h), k_j = rope(x Wk_j), v_j = x Wv_j;  y = sum_h softmax(q_h k_j^T / sqrt(C)) v_j Wo_h,  j = h // (H / K)

All kv heads: multi-head attention (Vaswani et al. 2017). One: MQA (Shazeer 2019). Between: GQA (Ainslie et al. 2023).
With `window` a query sees itself and the window - 1 keys before it, and the cache is a ring of `window` slots.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, ones, residual
from jaxeff.mixers.base import Ctx, biases, project, segment_ids, width
from jaxeff.ops.attention import attention
from jaxeff.ops.norm import rms_norm
from jaxeff.ops.rope import Rope, rope
from jaxeff.ops.segments import last_valid


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values [B, S, K, C] with each slot's position (-1: empty) and segment; per sequence: slots written so far,
    the next position, and the last segment id."""

    k: jax.Array
    v: jax.Array
    position: jax.Array
    segment: jax.Array
    written: jax.Array
    next_position: jax.Array
    last_segment: jax.Array


@dataclasses.dataclass(frozen=True)
class GQA:
    """Grouped-query attention; sizes left None derive from `d_model`.

    head_dim: D / n_heads, or 32 below D = 512 and 64 from there. n_heads: D // head_dim. n_kv_heads: a quarter of the heads
    (half below eight), or "all". rope None: no positions (NoPE). qk_norm: RMSNorm of each head's q and k before the rotation.
    bias: on all four projections. softcap: s -> c tanh(s / c) on the scores. impl: see `ops.attention.attention`.

    Cost per token: 2 x parameters + 4 T H C FLOPs (half of the T term when causal blocks are skipped) in training; in decoding
    the same with T the cache's length. State: 2 S K C numbers per sequence, S = min(max_len, window).

    Parameters: d_model * head * (2 * heads + 2 * kv_heads) + (2 * head if qk_norm else 0)
        + ((heads + 2 * kv_heads) * head + d_model if bias else 0)

    Raises ValueError for sizes that cannot be.
    """

    d_model: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | Literal["all"] | None = None
    head_dim: int | None = None
    window: int | None = None
    rope: Rope | None = Rope()
    qk_norm: bool = False
    bias: bool = False
    softcap: float | None = None
    impl: str | None = None

    def __post_init__(self):
        for name in ("d_model", "n_heads", "n_kv_heads", "head_dim", "window"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"GQA.{name} must be at least 1, found {value}")
        if self.d_model is not None:
            _ = self.head, self.kv_heads

    @property
    def heads(self) -> int:
        """H."""
        return self.n_heads or max(1, width(self) // self.head)

    @property
    def head(self) -> int:
        """C."""
        if self.head_dim is not None:
            head = self.head_dim
        elif self.n_heads is not None:
            if width(self) % self.n_heads:
                raise ValueError(
                    f"GQA.n_heads={self.n_heads} does not divide d_model={self.d_model}: choose a divisor or set head_dim"
                )
            head = width(self) // self.n_heads
        else:
            head = min(width(self), 32 if width(self) < 512 else 64)
        if self.rope is not None and head % 2:
            raise ValueError(f"GQA.head_dim={head} is odd: rotary embedding turns pairs of channels")
        return head

    @property
    def kv_heads(self) -> int:
        """K."""
        if self.n_kv_heads == "all":
            return self.heads
        if self.n_kv_heads is None:
            share = 4 if self.heads >= 8 else 2
            return self.heads // share if self.heads % share == 0 else self.heads
        if self.heads % self.n_kv_heads:
            raise ValueError(f"GQA.n_kv_heads={self.n_kv_heads} does not divide n_heads={self.heads}")
        return self.n_kv_heads

    def specs(self):
        """`q`, `k`, `v`, `o`; `q_norm`, `k_norm` with qk_norm; `*_bias` with bias."""
        d, h, k, c = width(self), self.heads, self.kv_heads, self.head
        specs = {
            "q": Spec((d, h, c), ("embed", "heads", "head_dim")),
            "k": Spec((d, k, c), ("embed", "kv_heads", "head_dim")),
            "v": Spec((d, k, c), ("embed", "kv_heads", "head_dim")),
            "o": Spec((h, c, d), ("heads", "head_dim", "embed"), residual, n_in=2),
        }
        if self.bias:
            specs |= biases(specs)
        if self.qk_norm:
            specs |= {f"{n}_norm": Spec((c,), ("head_dim",), ones, n_in=0) for n in "qk"}
        return specs

    def init_state(self, batch: int, max_len: int, dtype) -> KVCache:
        """An empty cache of min(max_len, window) slots."""
        slots = min(max_len, self.window or max_len)
        kv = jnp.zeros((batch, slots, self.kv_heads, self.head), dtype)
        none, zero = jnp.full((batch, slots), -1, jnp.int32), jnp.zeros((batch,), jnp.int32)
        return KVCache(kv, kv, none, jnp.zeros_like(none), zero, zero, zero)

    def apply(self, params, x_BTD: jax.Array, state: KVCache | None = None, *, ctx: Ctx = Ctx()):
        """(y_BTD, state). A cache without window holds `max_len` tokens: one more overwrites the oldest, so size it for the
        whole text. Raises ValueError for a prompt that is longer than the cache."""
        segment_BT = ctx.segment_ids
        position_BT = ctx.positions
        if state is not None:
            segment_BT = segment_ids(ctx, x_BTD.shape[:2], state.last_segment)
            if position_BT is None:
                position_BT = state.next_position[:, None] + jnp.cumsum(segment_BT != 0, axis=1) - 1
        q_BTHC, k_BTKC, v_BTKC = self._project(params, x_BTD, position_BT)

        if state is None:
            # Order in the row is order in time, also when positions restart in each segment: blocks can be skipped.
            o_BTHC = attention(
                q_BTHC, k_BTKC, v_BTKC,
                window=None if self.window is None else (self.window - 1, 0), softcap=self.softcap, impl=self.impl,
                segment_ids_BT=segment_BT, kv_segment_ids_BS=segment_BT,
            )  # fmt: skip
        else:
            if self.window is None and x_BTD.shape[1] > state.position.shape[1]:
                raise ValueError(f"{x_BTD.shape[1]} tokens do not fit a cache of max_len={state.position.shape[1]}")
            new = (k_BTKC, v_BTKC, position_BT, segment_BT)
            written = _write(state, *new)
            # One token overwrites exactly the slot that leaves the window. Several may overwrite keys that the first of
            # them still needs, so these see the old ring and the new keys side by side.
            ring = self.window is not None and x_BTD.shape[1] > 1
            seen = _beside(state, *new) if ring else written
            o_BTHC = attention(
                q_BTHC, seen.k.astype(q_BTHC.dtype), seen.v.astype(q_BTHC.dtype),
                window=None if self.window is None else (self.window - 1, 0), softcap=self.softcap,
                segment_ids_BT=segment_BT, kv_segment_ids_BS=seen.segment,
                positions_BT=position_BT, kv_positions_BS=seen.position,
            )  # fmt: skip
            state = written
        return project(params, "o", "bthc,hcd->btd", o_BTHC), state

    def _project(self, params, x_BTD, position_BT):
        def head(name, turn):
            y_BTHC = project(params, name, "btd,dhc->bthc", x_BTD)
            if turn and self.qk_norm:
                y_BTHC = rms_norm(y_BTHC, params[f"{name}_norm"])
            if turn and self.rope is not None:
                y_BTHC = rope(y_BTHC, position_BT, self.rope)
            return y_BTHC

        if position_BT is None:
            position_BT = jnp.arange(x_BTD.shape[1], dtype=jnp.int32)[None]
        return head("q", True), head("k", True), head("v", False)


def MHA(d_model: int | None = None, **sizes) -> GQA:
    """Multi-head attention: as many kv heads as query heads."""
    return GQA(d_model, n_kv_heads="all", **sizes)


def MQA(d_model: int | None = None, **sizes) -> GQA:
    """Multi-query attention: one kv head."""
    return GQA(d_model, n_kv_heads=1, **sizes)


def SlidingWindow(d_model: int | None = None, window: int = 128, **sizes) -> GQA:
    """GQA that sees the last `window` tokens, itself included (Beltagy et al. 2020)."""
    return GQA(d_model, window=window, **sizes)


def _write(state: KVCache, k_BTKC, v_BTKC, position_BT, segment_BT) -> KVCache:
    """The cache with the tokens that are not padding in the next slots of the ring."""
    batch, slots = state.position.shape
    valid_BT = segment_BT != 0
    order_BT = state.written[:, None] + jnp.cumsum(valid_BT, axis=1) - 1
    written_B = state.written + jnp.sum(valid_BT, axis=1)
    # Of several tokens for one slot the last one stays; out-of-range slots are dropped by the scatter.
    stays_BT = valid_BT & (order_BT >= written_B[:, None] - slots)
    slot_BT = jnp.where(stays_BT, order_BT % slots, slots)
    row_B1 = jnp.arange(batch)[:, None]

    def put(old, new):
        return old.at[row_B1, slot_BT].set(new.astype(old.dtype), mode="drop")

    position_BT = jnp.broadcast_to(position_BT, valid_BT.shape)
    next_B = last_valid(position_BT + 1, valid_BT, state.next_position)
    last_B = last_valid(segment_BT, valid_BT, state.last_segment)
    return KVCache(
        put(state.k, k_BTKC), put(state.v, v_BTKC), put(state.position, position_BT), put(state.segment, segment_BT),
        written_B, next_B, last_B,
    )  # fmt: skip


def _beside(state: KVCache, k_BTKC, v_BTKC, position_BT, segment_BT) -> KVCache:
    """The old cache and the new tokens side by side, for attention only."""
    new = dict(k=k_BTKC, v=v_BTKC, position=position_BT, segment=segment_BT)

    def join(name, value):
        old = getattr(state, name)
        value = jnp.broadcast_to(value, (old.shape[0], *value.shape[1:]))
        return jnp.concatenate([old, value.astype(old.dtype)], axis=1)

    return dataclasses.replace(state, **{name: join(name, value) for name, value in new.items()})
