"""Softmax attention with grouped key and value heads. B batch, T time, S slots, D model, H query heads, K kv heads, C channels.

    q_h = rope(x Wq_h), k_j = rope(x Wk_j), v_j = x Wv_j;  y = sum_h softmax(q_h k_j^T / sqrt(C)) v_j Wo_h,  j = h // (H / K)

All kv heads: multi-head attention (Vaswani et al. 2017). One: MQA (Shazeer 2019). Between: GQA (Ainslie et al. 2023).
With a window of (left, 0) the cache is a ring of left + 1 slots.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxeff.core import sequence
from jaxeff.core.errors import lookup
from jaxeff.core.spec import Spec, residual
from jaxeff.mixers import cache
from jaxeff.mixers.base import Ctx, Out, at_least_one, biased, project, width
from jaxeff.mixers.cache import Cache
from jaxeff.mixers.heads import head_count, head_width
from jaxeff.mixers.norm import Norm
from jaxeff.mixers.state import check_state
from jaxeff.ops.attention import IMPLEMENTATIONS, attention, attention_with_lse
from jaxeff.ops.attention_block import merged
from jaxeff.ops.attention_slices import CONTEXTS, Context, attention_slices
from jaxeff.ops.rope import Rope, rope
from jaxeff.ops.segments import Tokens


@dataclasses.dataclass(frozen=True)
class GQA:
    """Grouped-query attention; sizes left None derive from `d_model`.

    head_dim: D / n_heads, or 32 below D = 512 and 64 from there. n_heads: D // head_dim. n_kv_heads: a quarter of the heads
    (half below eight), or "all". causal: a query sees nothing after itself; without, there is no decoding. window: (left, right),
    how far a query sees, itself always. rope None: no positions (NoPE). qk_norm: a norm of q and k before the rotation, of each
    head, or over all heads together ("all", OLMo 2). biases: names among q, k, v, o. scale: of the scores, C**-0.5 if None.
    softcap: s -> c tanh(s / c) on the scores. impl: see `ops.attention.attention`; for the whole sequence, as a cache has
    positions, which kernels do not take. context: how a text that is cut into slices over devices is attended to, by "gather", one
    exchange of keys and values before, or by a "ring" of them, which for long texts without a window takes less memory and,
    causal, half the FLOPs; "gather" is the default for its one exchange, and as under a window it brings no more than the window
    reaches. See `ops.attention_slices`.

    Cost per token: 2 x parameters + 4 T H C FLOPs (half of the T term when causal blocks are skipped) in training; in decoding
    the same with T the cache's length. State: 2 S K C numbers per sequence, S = min(max_len, left + 1).

    Parameters: d_model * head * (2 * heads + 2 * kv_heads)
        + (0 if qk_norm is None else qk_norm.size * head * (2 if qk_norm_over == "head" else heads + kv_heads))
        + ("q" in biases) * heads * head + (("k" in biases) + ("v" in biases)) * kv_heads * head + ("o" in biases) * d_model

    Raises ValueError for sizes that cannot be.
    """

    d_model: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | Literal["all"] | None = None
    head_dim: int | None = None
    causal: bool = True
    window: tuple[int, int] | None = None
    rope: Rope | None = Rope()
    qk_norm: Norm | None = None
    qk_norm_over: Literal["head", "all"] = "head"
    biases: tuple[str, ...] = ()
    scale: float | None = None
    softcap: float | None = None
    impl: str | None = None
    context: Context = "gather"

    def __post_init__(self):
        at_least_one(self, "d_model", "n_heads", "n_kv_heads", "head_dim")
        _check_window(self.window, self.causal)
        for name in ("softcap", "scale"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"GQA.{name} must be above 0, or None, found {getattr(self, name)}")
        if self.qk_norm_over not in ("head", "all"):
            raise ValueError(f"GQA.qk_norm_over must be 'head' or 'all', found {self.qk_norm_over!r}")
        if self.impl is not None:
            lookup(IMPLEMENTATIONS, self.impl, "attention implementation")
        lookup(CONTEXTS, self.context, "way to attend to a text in slices")
        if self.d_model is not None:
            self.specs()

    @property
    def heads(self) -> int:
        """H."""
        return head_count(self)

    @property
    def head(self) -> int:
        """C."""
        head = head_width(self)
        if self.rope is not None:
            self.rope.width(head)
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
        """`q`, `k`, `v`, `o`; `q_norm/scale`, `k_norm/scale` with qk_norm; `<name>_bias`."""
        d, h, k, c = width(self), self.heads, self.kv_heads, self.head
        specs = {
            "q": Spec((d, h, c), ("embed", "heads", "head_dim")),
            "k": Spec((d, k, c), ("embed", "kv_heads", "head_dim")),
            "v": Spec((d, k, c), ("embed", "kv_heads", "head_dim")),
            "o": Spec((h, c, d), ("heads", "head_dim", "embed"), residual, n_in=2),
        }
        specs = biased(specs, self.biases, self)
        if self.qk_norm is not None:
            whole = self.qk_norm_over == "all"
            for name in "qk":
                shape, axes = specs[name].outputs, specs[name].axes[1:]
                specs[f"{name}_norm"] = self.qk_norm.specs(shape if whole else shape[1:], axes if whole else axes[1:])
        return specs

    def init_state(self, batch: int, max_len: int, dtype) -> Cache:
        """An empty cache of min(max_len, left + 1) slots. Raises ValueError where attention is not causal."""
        if not self.causal:
            raise ValueError("GQA(causal=False) sees what comes after: it has no decode state")
        slots = max_len if self.window is None else min(max_len, self.window[0] + 1)
        return cache.empty(dict.fromkeys("kv", (self.kv_heads, self.head)), batch, slots, dtype)

    def apply(self, params, x_BTD: jax.Array, state: Cache | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """A cache without window holds `max_len` tokens. Raises ValueError for one more; under `jit`, where only the length of the
        prompt is known, the outputs of a row that has become too long are NaN."""
        check_state(self, state, x_BTD)
        tokens, row = ctx.tokens(x_BTD, None if state is None else state.row)
        q_BTHC, k_BTKC, v_BTKC = self._project(params, x_BTD, tokens.position)
        options = dict(causal=self.causal, window=self.window, scale=self.scale, softcap=self.softcap)
        if state is None:
            if sequence.sliced():
                o_BTHC, _ = self._in_slices(q_BTHC, k_BTKC, v_BTKC, tokens)
            else:
                # Order in the row is order in time, also when positions restart in each segment: blocks can be skipped.
                o_BTHC = attention(
                    q_BTHC, k_BTKC, v_BTKC, **options, impl=self.impl, segment_ids_BT=tokens.segment,
                    kv_segment_ids_BS=tokens.segment, mesh=ctx.mesh, rules=ctx.rules,
                )  # fmt: skip
            return Out(project(params, "o", "bthc,hcd->btd", o_BTHC))

        time = x_BTD.shape[1] * (sequence.count() if sequence.sliced() else 1)
        if self.window is None and time > state.slots:
            raise ValueError(f"{time} tokens do not fit a cache of max_len={state.slots}")
        written = cache.write(state, {"k": k_BTKC, "v": v_BTKC}, tokens, row)
        # One token overwrites exactly the slot that leaves the window, several may overwrite keys that the first of them needs.
        if self.window is not None and time > 1:
            if sequence.sliced():
                own = self._in_slices(q_BTHC, k_BTKC, v_BTKC, tokens)
            else:
                # In the order of time, so that blocks outside of the window are skipped.
                segments = dict(segment_ids_BT=tokens.segment, kv_segment_ids_BS=tokens.segment)
                own = attention_with_lse(q_BTHC, k_BTKC, v_BTKC, **options, **segments)
            o_BTHC = _beside_the_ring(own, q_BTHC, state, tokens, options)
        else:
            o_BTHC = _from(written, q_BTHC, tokens, options)[0]
        y_BTD = project(params, "o", "bthc,hcd->btd", o_BTHC)
        return Out(y_BTD if self.window is not None else cache.within(written, y_BTD), written)

    def _in_slices(self, q_BTHC, k_BTKC, v_BTKC, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        """(o, lse) of the queries of a slice, with all of the text."""
        return attention_slices(
            q_BTHC, k_BTKC, v_BTKC, causal=self.causal, window=self.window, scale=self.scale, softcap=self.softcap,
            segment_ids_BT=tokens.segment, context=self.context,
        )  # fmt: skip

    def _project(self, params, x_BTD, position_BT):
        def head(name):
            y_BTHC = project(params, name, "btd,dhc->bthc", x_BTD)
            if name == "v":
                return y_BTHC
            if self.qk_norm is not None:
                y_BTHC = self.qk_norm.apply(params[f"{name}_norm"], y_BTHC, 1 if self.qk_norm_over == "head" else 2)
            return y_BTHC if self.rope is None else rope(y_BTHC, position_BT, self.rope)

        return head("q"), head("k"), head("v")


def _from(state: Cache, q_BTHC: jax.Array, tokens: Tokens, options) -> tuple[jax.Array, jax.Array]:
    """(o, lse) of attention to what a cache holds."""
    return attention_with_lse(
        q_BTHC, *(state.values[name].astype(q_BTHC.dtype) for name in "kv"), **options,
        segment_ids_BT=tokens.segment, kv_segment_ids_BS=state.segment,
        positions_BT=tokens.position, kv_positions_BS=state.position,
    )  # fmt: skip


def _beside_the_ring(own: tuple[jax.Array, jax.Array], q_BTHC, state: Cache, tokens: Tokens, options) -> jax.Array:
    """`own`, (o, lse) of attention to new tokens, merged with that to a ring from before them, which is read only where it holds
    something."""

    def both():
        return merged(own, _from(state, q_BTHC, tokens, options))[0].astype(own[0].dtype)

    return jax.lax.cond(jnp.any(state.segment != 0), both, lambda: own[0])


def MHA(d_model: int | None = None, **sizes) -> GQA:
    """Multi-head attention: as many kv heads as query heads."""
    return GQA(d_model, n_kv_heads="all", **sizes)


def MQA(d_model: int | None = None, **sizes) -> GQA:
    """Multi-query attention: one kv head."""
    return GQA(d_model, n_kv_heads=1, **sizes)


def SlidingWindow(d_model: int | None = None, window: int = 128, **sizes) -> GQA:
    """GQA that sees the last `window` tokens, itself included (Beltagy et al. 2020)."""
    return GQA(d_model, window=(window - 1, 0), **sizes)


def _check_window(window, causal: bool) -> None:
    if window is None:
        return
    if not (isinstance(window, tuple) and len(window) == 2 and min(window) >= 0):
        raise ValueError(
            f"GQA.window is (left, right), both at least 0, found {window!r}; the last w tokens: (w - 1, 0)"
        )
    if causal and window[1]:
        raise ValueError(f"GQA.window={window}: causal attention sees nothing to its right; write ({window[0]}, 0)")
