"""Mamba (Gu and Dao 2023, "Mamba", section 3). B batch, T time, D model, C channels, N state, R rank.

    z, x = u Wz, u Wx;    x = silu(conv(x));    r, b, c = x Wr, x Wb, x Wc;    dt = softplus(r Wdt + dt_bias)
    h_t = exp(-exp(a_log) dt_t) h_{t-1} + dt_t x_t b_t;    y_t = h_t c_t + skip x_t;    out = (y silu(z)) Wo

Every channel keeps N numbers, each of which fades at its own rate; one b and one c serve all channels. Falcon-Mamba (Zuo et al.
2024) divides r, b and c by their root mean square. The published code's `in_proj` and `x_proj` are here one weight a part, so
that each is sharded by its own axes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxeff.core.recompute import checkpoint
from jaxeff.core.spec import Site, Spec, ones, residual
from jaxeff.core.weight import einsum
from jaxeff.mixers.base import Ctx, Out, at_least_one, biased, project, width
from jaxeff.mixers.discretise import StepBias, step_size
from jaxeff.mixers.short_conv import ShortConv, UniformFan
from jaxeff.mixers.state import check_state
from jaxeff.ops.norm import rms_norm
from jaxeff.ops.segments import Row, empty_row, zero_padding
from jaxeff.ops.selective_scan import selective_scan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MambaState:
    """h: float32 [B, C, N]. taps: the last inputs of the convolution, [B, W - 1, C]."""

    h: jax.Array
    taps: jax.Array
    row: Row


def log_ladder(key, shape, dtype, site: Site):
    """log 1, log 2, ... along the last axis: a_log, the real S4D of Gu et al. 2022."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)), shape).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Mamba:
    """The selective state space model; sizes left None derive from `d_model`.

    d_state: N. expand: C / D. dt_rank: R, a sixteenth of `d_model`, rounded up. conv: of x. dt_range: of the initial dt
    (log-uniform). bcdt_eps: of the RMS norm of r, b and c that Falcon-Mamba adds, which has no weights; None for no norm. biases:
    names among z, x, o; that of dt is always there.

    Cost per token: 2 x parameters + about 7 C N FLOPs and C N exponentials at any length, none of them in matrix products over
    time. State: C N float32 numbers per sequence, and the (W - 1) C last inputs of the convolution.

    Parameters: inner * (3 * d_model + 2 * rank + 3 * d_state + 2) + conv.count(inner)
        + (("z" in biases) + ("x" in biases)) * inner + ("o" in biases) * d_model

    a_log, dt_bias and skip are float32 and spared by weight decay, as published. Differs from the published code in the
    initial values of the projections but dt's, which are the library's own for all mixers.

    Raises ValueError for sizes that cannot be.
    """

    d_model: int | None = None
    d_state: int = 16
    expand: int = 2
    dt_rank: int | None = None
    conv: ShortConv = ShortConv()
    dt_range: tuple[float, float] = (1e-3, 1e-1)
    bcdt_eps: float | None = None
    biases: tuple[str, ...] = ()

    def __post_init__(self):
        at_least_one(self, "d_model", "d_state", "expand", "dt_rank")
        low, high = self.dt_range
        if not 0 < low <= high:
            raise ValueError(f"Mamba.dt_range must be (low, high), rising and above 0, found {(low, high)}")
        if self.bcdt_eps is not None and not self.bcdt_eps > 0:
            raise ValueError(f"Mamba.bcdt_eps must be above 0, or None for no norm, found {self.bcdt_eps}")
        if self.d_model is not None:
            self.specs()

    @property
    def inner(self) -> int:
        """C."""
        return self.expand * width(self)

    @property
    def rank(self) -> int:
        """R."""
        return -(-width(self) // 16) if self.dt_rank is None else self.dt_rank

    def specs(self):
        """`z`, `x`, `o` and their `<name>_bias`; `conv_x`, `dt_low`, `b`, `c`, `dt`, `dt_bias`, `a_log`, `skip`."""
        d, c, r, n = width(self), self.inner, self.rank, self.d_state
        inwards, outwards = Spec((d, c), ("embed", "mlp")), Spec((c, d), ("mlp", "embed"), residual)
        return biased({"z": inwards, "x": inwards, "o": outwards}, self.biases, self) | {
            "conv_x": self.conv.specs((c,), ("mlp",)),
            "dt_low": Spec((c, r), ("mlp", "rank")),
            "b": Spec((c, n), ("mlp", "state")),
            "c": Spec((c, n), ("mlp", "state")),
            "dt": Spec((r, c), ("rank", "mlp"), UniformFan(r)),
            "dt_bias": Spec((c,), ("mlp",), StepBias(*self.dt_range), dtype=jnp.float32, n_in=0),
            "a_log": Spec((c, n), ("mlp", "state"), log_ladder, dtype=jnp.float32, n_in=0),
            "skip": Spec((c,), ("mlp",), ones, dtype=jnp.float32, n_in=0),
        }

    def init_state(self, batch: int, max_len: int, dtype) -> MambaState:
        """An empty state, as large for any `max_len`; h is float32 whatever `dtype`."""
        h_BCN = jnp.zeros((batch, self.inner, self.d_state), jnp.float32)
        return MambaState(h_BCN, self.conv.init_state(batch, (self.inner,), dtype), empty_row(batch))

    def apply(self, params, x_BTD: jax.Array, state: MambaState | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        check_state(self, state, x_BTD)
        tokens, row = ctx.tokens(x_BTD, None if state is None else state.row)
        h_BCN, taps = (None, None) if state is None else (state.h, state.taps)
        z_BTC = project(params, "z", "btd,dc->btc", x_BTD)
        x_BTC = project(params, "x", "btd,dc->btc", x_BTD)
        x_BTC, taps = self.conv.apply(params["conv_x"], x_BTC, taps, tokens, "mlp", ctx)
        low_BTR, b_BTN, c_BTN = (
            self._norm(project(params, name, "btc,cn->btn", x_BTC)) for name in ("dt_low", "b", "c")
        )
        dt_BTC = einsum("btr,rc->btc", low_BTR, params["dt"])  # its bias is added in float32
        scan = checkpoint(functools.partial(self._scan, mesh=ctx.mesh, rules=ctx.rules))
        y_BTC, h_BCN = scan(params, x_BTC, dt_BTC, b_BTN, c_BTN, z_BTC, h_BCN, tokens)
        y_BTD = project(params, "o", "btc,cd->btd", y_BTC)
        return Out(y_BTD, None if state is None else MambaState(h_BCN, taps, row))

    def _norm(self, x):
        return x if self.bcdt_eps is None else rms_norm(x, eps=self.bcdt_eps)

    def _scan(self, params, x_BTC, dt_BTC, b_BTN, c_BTN, z_BTC, h_BCN, tokens, **spread):
        """(gated y_BTC in x's dtype, h): all that is float32. spread: mesh and rules."""
        a_CN, skip_C = -jnp.exp(params["a_log"].astype(jnp.float32)), params["skip"].astype(jnp.float32)
        dt_BTC = zero_padding(step_size(dt_BTC, params["dt_bias"]), tokens.valid)  # adds nothing, forgets nothing
        x32_BTC = x_BTC.astype(jnp.float32)
        arrays = (x32_BTC, dt_BTC, a_CN, b_BTN, c_BTN, h_BCN, tokens.start)
        y_BTC, h_BCN = selective_scan(*arrays, recompute=False, **spread)
        y_BTC = (y_BTC + skip_C[None, None] * x32_BTC) * jax.nn.silu(z_BTC.astype(jnp.float32))
        return y_BTC.astype(x_BTC.dtype), h_BCN
