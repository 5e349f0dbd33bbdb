"""DeltaNet (Schlag et al. 2021; Yang et al. 2024, "Parallelizing linear transformers with the delta rule").

    q, k, v = silu(conv(x Wq)), silu(conv(x Wk)), silu(conv(x Wv));  q, k of length one;  beta = sigmoid(x Wb)
    S_t = (1 - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T;    o_t = S_t^T q_t / sqrt(C);    y = norm(o) Wo

B batch, T time, D model, K key heads, H heads, C key dim, E value dim. What is stored under a key is replaced rather than added
to. With beta up to 2 the step may turn a key's direction around: eigenvalues down to -1 (Grazzi et al. 2024, "Unlocking
state-tracking in linear RNNs through negative eigenvalues"), without which no parity can be told.

Its successors are this mixer with gates: each says in one method what its state forgets.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxeff.core.recompute import checkpoint
from jaxeff.core.spec import Spec, residual
from jaxeff.core.weight import einsum
from jaxeff.mixers.base import Ctx, Out, at_least_one, project, width
from jaxeff.mixers.heads import head_count, head_width
from jaxeff.mixers.norm import Norm, RMSNorm
from jaxeff.mixers.short_conv import ShortConv
from jaxeff.mixers.state import check_state
from jaxeff.ops.delta_rule import delta_rule
from jaxeff.ops.segments import Row, empty_row, zero_padding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeltaState:
    """S: float32 [B, H, C, E]. taps: the last inputs of the convolutions of q, k, v, [B, W - 1, ...]."""

    S: jax.Array
    taps: dict[str, jax.Array]
    row: Row


@dataclasses.dataclass(frozen=True)
class DeltaNet:
    """The delta rule; sizes left None derive from `d_model`.

    head_dim: C, D / n_heads, or 32 below D = 512 and 64 from there. n_heads: H, D // head_dim. n_key_heads: K, H; fewer are
    shared by the heads of a group. value_dim: E, C. conv: of q, k and v. negative: beta in (0, 2) rather than (0, 1). gate: the
    output is norm(o) silu(x Wz). norm: of o, over E, with one scale for all heads.

    Cost per token: 2 x parameters + about 2 H (5 C E + 32 (2 C + 2 E)) FLOPs at any length, in decoding 2 x parameters + 6 H C E.
    State: H C E float32 numbers per sequence, and the (W - 1) (2 K C + H E) last inputs of the convolutions.

    Parameters: d_model * (2 * key_heads * head + (3 if gate else 2) * heads * value + heads)
        + conv.count(2 * key_heads * head + heads * value) + norm.size * value

    Raises ValueError for sizes that cannot be.
    """

    d_model: int | None = None
    n_heads: int | None = None
    head_dim: int | None = None
    value_dim: int | None = None
    n_key_heads: int | None = None
    conv: ShortConv = ShortConv(bias=False)
    negative: bool = False
    gate: bool = False
    norm: Norm = RMSNorm(eps=1e-5)

    expand: ClassVar[int] = 1  # E / C where it is not given
    steps: ClassVar[int] = 1  # of the delta rule a token: keys, values and betas of each

    def __post_init__(self):
        at_least_one(self, "d_model", "n_heads", "head_dim", "value_dim", "n_key_heads")
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
    def value(self) -> int:
        """E."""
        return self.expand * self.head if self.value_dim is None else self.value_dim

    @property
    def key_heads(self) -> int:
        """K."""
        keys = self.n_key_heads or self.heads
        if self.heads % keys:
            raise ValueError(f"{type(self).__name__}.n_key_heads={keys} does not divide n_heads={self.heads}")
        return keys

    @property
    def _inner(self) -> tuple[tuple[int, int], tuple[str, str]]:
        """Shape and axes of o of one token."""
        return (self.heads, self.value), ("heads", "head_dim")

    @property
    def _parts(self) -> dict[str, tuple[tuple[int, int], tuple[str, str]]]:
        """Shapes and axes of q, k, v of one token; the steps of k and v side by side."""
        n, keys = self.steps, ("kv_heads", "head_dim")
        q, k = (self.key_heads, self.head), (n * self.key_heads, self.head)
        return {"q": (q, keys), "k": (k, keys), "v": ((n * self.heads, self.value), self._inner[1])}

    def specs(self):
        """`q`, `k`, `v`, `beta`, `o`; `conv_q`, `conv_k`, `conv_v`; `norm`; `z` with an output gate; a successor's gate."""
        d, (inner, inner_axes) = width(self), self._inner
        specs = {name: Spec((d, *shape), ("embed", *axes)) for name, (shape, axes) in self._parts.items()}
        specs |= {f"conv_{name}": self.conv.specs(*part) for name, part in self._parts.items()}
        specs |= {
            "beta": Spec((d, self.steps * self.heads), ("embed", "heads")),
            "norm": self.norm.specs((self.value,), ("head_dim",)),
        }
        specs |= {"o": Spec((*inner, d), (*inner_axes, "embed"), residual, n_in=2)}
        return specs | self._output_gate_specs() | self._forget_specs()

    def _output_gate_specs(self):
        inner, axes = self._inner
        return {"z": Spec((width(self), *inner), ("embed", *axes))} if self.gate else {}

    def _output_gate(self, params, x_BTD) -> jax.Array | None:
        """What norm(o) is multiplied by, float32 [B, T, H, E]."""
        return jax.nn.silu(project(params, "z", "btd,dhe->bthe", x_BTD).astype(jnp.float32)) if self.gate else None

    def _forget_specs(self):
        return {}

    def _log_a(self, params, x_BTD) -> jax.Array | None:
        """log of what is kept of the state, float32 [B, T, H] or [B, T, H, C], None for all of it."""
        return None

    def init_state(self, batch: int, max_len: int, dtype) -> DeltaState:
        """An empty state, as large for any `max_len`; S is float32 whatever `dtype`."""
        taps = {name: self.conv.init_state(batch, shape, dtype) for name, (shape, _) in self._parts.items()}
        return DeltaState(jnp.zeros((batch, self.heads, self.head, self.value), jnp.float32), taps, empty_row(batch))

    def apply(self, params, x_BTD: jax.Array, state: DeltaState | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        check_state(self, state, x_BTD)
        S_BHCE, taps, row = (None, {}, None) if state is None else (state.S, state.taps, state.row)
        tokens, row = ctx.tokens(x_BTD, row)
        qkv, after = {}, {}
        for name in "qkv":
            u = project(params, name, "btd,dhc->bthc", x_BTD)
            before, axis = taps.get(name), self._parts[name][1][0]
            qkv[name], after[name] = self.conv.apply(params[f"conv_{name}"], u, before, tokens, axis, ctx)
        beta_BTH = einsum("btd,dh->bth", x_BTD, params["beta"])
        log_a = self._log_a(params, x_BTD)
        mix = checkpoint(functools.partial(self._mix, mesh=ctx.mesh, rules=ctx.rules))
        o_BTHE, S_BHCE = mix(**qkv, beta=beta_BTH, log_a=log_a, S=S_BHCE, tokens=tokens)
        gate_BTHE = self._output_gate(params, x_BTD)
        o_BTHE = self.norm.apply(params["norm"], o_BTHE.astype(jnp.float32))
        o_BTHE = o_BTHE if gate_BTHE is None else o_BTHE * gate_BTHE
        y_BTD = project(params, "o", "bthe,hed->btd", o_BTHE.astype(x_BTD.dtype))
        return Out(y_BTD, None if state is None else DeltaState(S_BHCE, after, row))

    def _mix(self, q, k, v, beta, log_a, S, tokens, **spread):
        """(o_BTHE in v's dtype, S): what enters the recurrence, and the recurrence. spread: mesh and rules, for its kernel."""
        copies = self.heads // self.key_heads
        q_BTHC, k_BTHC = (jnp.repeat(unit(x), copies, axis=2) for x in (q, k))
        beta_BTH = jax.nn.sigmoid(beta.astype(jnp.float32)) * (2 if self.negative else 1)
        beta_BTH = zero_padding(beta_BTH, tokens.valid)  # replaces nothing
        log_a = None if log_a is None else zero_padding(log_a, tokens.valid)  # forgets nothing
        o_BTHE, S = self._recur(q_BTHC * self.head**-0.5, k_BTHC, v, beta_BTH, log_a, S, tokens.start, **spread)
        return o_BTHE.astype(v.dtype), S

    def _recur(self, q_BTHC, k_BTHC, v_BTHE, beta_BTH, log_a, S_BHCE, start_BT, **spread):
        """(o_BTHE, S) of S_t = (1 - beta k k^T) diag(a) S + beta k v^T."""
        w_BTHC = k_BTHC
        if log_a is not None:
            w_BTHC = k_BTHC * jnp.exp(log_a if log_a.ndim == 4 else log_a[..., None])
        kb_BTHC = beta_BTH[..., None] * k_BTHC
        arrays = (q_BTHC, kb_BTHC, v_BTHE, -kb_BTHC, w_BTHC, log_a, S_BHCE, start_BT)
        return delta_rule(*arrays, recompute=False, **spread)


def unit(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """x / |x| over the last axis, in float32; eps is added to the square, so that zero stays zero, with zero gradients."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + eps)
