"""Mamba-2 (Dao and Gu 2024, "Transformers are SSMs", section 7). B batch, T time, D model, H heads, E head dim, G groups, N state.

    z, x, b, c, dt = u W;    x, b, c = silu(conv(x, b, c));    dt = clip(softplus(dt + dt_bias))
    S_t = exp(-exp(a_log) dt_t) S_{t-1} + b_t (dt_t x_t)^T;    y_t = S_t^T c_t + skip x_t;    out = norm(y silu(z)) Wo

Per head a linear attention with keys b and queries c, shared by the heads of a group, whose past fades by one rate a head and
token. The published code's `in_proj` is here one weight a part, so that each is sharded by its own axes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxeff.core.recompute import checkpoint
from jaxeff.core.spec import Spec, ones, residual
from jaxeff.core.weight import einsum
from jaxeff.mixers.base import Ctx, Out, at_least_one, project, width
from jaxeff.mixers.discretise import LogUniform, StepBias, step_size
from jaxeff.mixers.heads import nearest_divisor
from jaxeff.mixers.norm import Norm, RMSNorm
from jaxeff.mixers.short_conv import ShortConv
from jaxeff.mixers.state import check_state
from jaxeff.ops.gated_linear import gated_linear
from jaxeff.ops.gated_norm import gated_norm
from jaxeff.ops.segments import Row, empty_row, zero_padding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mamba2State:
    """S: float32 [B, H, N, E]. taps: the last inputs of the convolutions of x, b, c, [B, W - 1, ...]."""

    S: jax.Array
    taps: dict[str, jax.Array]
    row: Row


@dataclasses.dataclass(frozen=True)
class Mamba2:
    """State space duality; sizes left None derive from `d_model`.

    d_state: N. expand: H E / D. head_dim: E, 64 or all channels where there are fewer. n_groups: G, how many b and c there are.
    conv: of x, b and c. dt_limit: (low, high) that dt is clipped to, if any. dt_range, a_range: of the initial dt (log-uniform)
    and a (uniform). norm: of the gated y over the channels of one of `norm_groups` groups, None for G. norm_before_gate:
    norm(y) silu(z).

    Cost per token: 2 x parameters + about 2 H (2 N E + 64 (N / (H / G) + E)) FLOPs at any length, in decoding 2 x parameters +
    4 H N E. State: H N E float32 numbers per sequence, and the (W - 1) (H E + 2 G N) last inputs of the convolutions.

    Parameters: 3 * d_model * inner + 2 * d_model * n_groups * d_state + d_model * heads
        + conv.count(inner + 2 * n_groups * d_state) + 3 * heads + norm.size * inner

    a_log, dt_bias and skip are float32 and spared by weight decay, as published. Differs from the published code in the
    initial values of the projections, which are the library's own for all mixers.

    Raises ValueError for sizes that cannot be.
    """

    d_model: int | None = None
    d_state: int = 128
    expand: int = 2
    head_dim: int | None = None
    n_groups: int = 1
    conv: ShortConv = ShortConv()
    dt_limit: tuple[float, float] | None = None
    dt_range: tuple[float, float] = (1e-3, 1e-1)
    a_range: tuple[float, float] = (1.0, 16.0)
    norm: Norm = RMSNorm(eps=1e-5)
    norm_groups: int | None = None
    norm_before_gate: bool = False

    def __post_init__(self):
        at_least_one(self, "d_model", "d_state", "expand", "head_dim", "n_groups", "norm_groups")
        for name in ("dt_limit", "dt_range", "a_range"):
            if getattr(self, name) is None and name == "dt_limit":
                continue
            low, high = getattr(self, name)
            if not (0 <= low <= high) or (low == 0 and name != "dt_limit"):
                raise ValueError(f"Mamba2.{name} must be (low, high), rising and above 0, found {(low, high)}")
        if self.d_model is not None:
            self.specs()

    @property
    def inner(self) -> int:
        """H E."""
        return self.expand * width(self)

    @property
    def head(self) -> int:
        """E."""
        return min(64, self.inner) if self.head_dim is None else self.head_dim

    @property
    def heads(self) -> int:
        """H."""
        if self.inner % self.head:
            raise ValueError(
                f"Mamba2.head_dim={self.head} does not divide expand * d_model = {self.inner}; the nearest that does: "
                f"{nearest_divisor(self.inner, self.head)}"
            )
        return self.inner // self.head

    @property
    def normed(self) -> int:
        """Groups whose channels are normed together."""
        return self.norm_groups or self.n_groups

    def specs(self):
        """`z`, `x`, `b`, `c`, `dt`, `o`; `conv_x`, `conv_b`, `conv_c`; `a_log`, `dt_bias`, `skip`; `norm`."""
        d, h, e, g, n = width(self), self.heads, self.head, self.n_groups, self.d_state
        for name, groups in (("n_groups", g), ("norm_groups", self.normed)):
            if h % groups:
                raise ValueError(
                    f"Mamba2.{name}={groups} does not divide {h} heads; the nearest that does: {nearest_divisor(h, groups)}"
                )
        inner, state = ((h, e), ("heads", "head_dim")), ((g, n), ("kv_heads", "state"))
        parts = {"z": inner, "x": inner, "b": state, "c": state, "dt": ((h,), ("heads",))}
        specs = {name: Spec((d, *shape), ("embed", *axes)) for name, (shape, axes) in parts.items()}
        specs |= {f"conv_{name}": self.conv.specs(*parts[name]) for name in "xbc"}

        def by_head(init):
            return Spec((h,), ("heads",), init, dtype=jnp.float32, n_in=0)

        return specs | {
            "a_log": by_head(LogUniform(*self.a_range)),
            "dt_bias": by_head(StepBias(*self.dt_range)),
            "skip": by_head(ones),
            "norm": self.norm.specs(*inner),
            "o": Spec((h, e, d), ("heads", "head_dim", "embed"), residual, n_in=2),
        }

    def init_state(self, batch: int, max_len: int, dtype) -> Mamba2State:
        """An empty state, as large for any `max_len`; S is float32 whatever `dtype`."""
        shapes = {"x": (self.heads, self.head)} | dict.fromkeys("bc", (self.n_groups, self.d_state))
        taps = {name: self.conv.init_state(batch, shape, dtype) for name, shape in shapes.items()}
        S_BHNE = jnp.zeros((batch, self.heads, self.d_state, self.head), jnp.float32)
        return Mamba2State(S_BHNE, taps, empty_row(batch))

    def apply(self, params, x_BTD: jax.Array, state: Mamba2State | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        check_state(self, state, x_BTD)
        tokens, row = ctx.tokens(x_BTD, None if state is None else state.row)
        z_BTHE = project(params, "z", "btd,dhe->bthe", x_BTD)
        dt_BTH = einsum("btd,dh->bth", x_BTD, params["dt"])  # its bias is added in float32
        xbc, taps = {}, {}
        for name in "xbc":
            u = project(params, name, "btd,dhe->bthe", x_BTD)
            before, axis = None if state is None else state.taps[name], "heads" if name == "x" else "kv_heads"
            xbc[name], taps[name] = self.conv.apply(params[f"conv_{name}"], u, before, tokens, axis, ctx)
        S_BHNE = None if state is None else state.S
        scan = checkpoint(functools.partial(self._scan, mesh=ctx.mesh, rules=ctx.rules))
        y_BTHE, S_BHNE = scan(params, *xbc.values(), dt_BTH, S_BHNE, tokens)
        y_BTHE = checkpoint(self._gate)(params["norm"], y_BTHE, z_BTHE)
        y_BTD = project(params, "o", "bthe,hed->btd", y_BTHE)
        return Out(y_BTD, None if state is None else Mamba2State(S_BHNE, taps, row))

    def _scan(self, params, x_BTHE, b_BTGN, c_BTGN, dt_BTH, S_BHNE, tokens, **spread):
        """(y_BTHE in x's dtype, S): the recurrence. spread: mesh and rules."""
        dt_BTH = step_size(dt_BTH, params["dt_bias"])
        if self.dt_limit is not None:
            dt_BTH = jnp.clip(dt_BTH, *self.dt_limit)
        dt_BTH = zero_padding(dt_BTH, tokens.valid)  # adds nothing, forgets nothing
        log_a_BTH = -jnp.exp(params["a_log"].astype(jnp.float32))[None, None] * dt_BTH
        arrays = (c_BTGN, b_BTGN, x_BTHE, log_a_BTH, S_BHNE, tokens.start)
        return gated_linear(*arrays, gain_BTH=dt_BTH, skip_H=params["skip"], recompute=False, **spread)

    def _gate(self, params, y_BTHE, z_BTHE):
        """norm(y silu(z)), or norm(y) silu(z), by groups of heads."""
        return gated_norm(self.norm.apply, params, y_BTHE, z_BTHE, self.normed, self.norm_before_gate)
