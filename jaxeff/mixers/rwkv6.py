"""RWKV-6 (Peng et al. 2024, "Eagle and Finch: RWKV with matrix-valued states and dynamic recurrence", section 4). B batch, T time,
D model, H heads, C head dim, A = H C, N = 5 mixes, R rank, F hidden.

    lerp(m) = x_t + (x_{t-1} - x_t) m;    x_n = lerp(mix_n + (tanh(lerp(mix_x) down) up)_n)    for n of r, w, k, v, g
    r, k, v, g = W_n x_n;    log a = -exp(decay + tanh(x_w down') up')
    o_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t;    S_t = diag(a_t) S_{t-1} + k_t v_t^T;    out = Wo (norm(o) silu(g))
    out = sigmoid(Wr lerp(mix_r)) Wv relu(Wk lerp(mix_k))^2                                      the channel mixer

Per head a linear attention whose past fades by a rate per channel and token; what a token adds is weighted by the bonus u while it
is the current one. Products r . k are not scaled. Mixes are shares of the token before, in `rwkv4` they are of the current one.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxeff.core.recompute import checkpoint
from jaxeff.core.spec import Site, Spec, residual, stack, zeros
from jaxeff.core.weight import einsum
from jaxeff.mixers.base import Ctx, Out, at_least_one, project, width
from jaxeff.mixers.norm import LayerNorm, Norm
from jaxeff.mixers.rwkv import Before, Current, ShiftState, depth, empty_shift, lerp, mixes, shifted
from jaxeff.mixers.rwkv4 import RWKV4Channel
from jaxeff.mixers.state import check_state
from jaxeff.ops.gated_linear import gated_linear
from jaxeff.ops.segments import zero_padding

MIXES = "rwkvg"  # in the order of the low-rank map's outputs
FASTEST = 60.0  # of decay: a = exp(-exp(5)) is 0 in float32 already, but exp(90) is infinite


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RWKV6State:
    """S: float32 [B, H, C, C]."""

    shift: ShiftState
    S: jax.Array


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Uniform in +-bound."""

    bound: float

    def __call__(self, key, shape, dtype, site: Site):
        return jax.random.uniform(key, shape, dtype, -self.bound, self.bound)


def _channels(shape):
    """(i, i / (A - 1)) for channel i of A, heads one after the other."""
    i_HC = jnp.arange(shape[0] * shape[1], dtype=jnp.float32).reshape(shape)
    return i_HC, i_HC / max(i_HC.size - 1, 1)


@dataclasses.dataclass(frozen=True)
class Decay:
    """-6 + 5 (i / (A - 1))^(0.7 + 1.3 l / (L - 1)) for channel i of A in layer l of L: slow to fast, fewer fast in later layers."""

    def __call__(self, key, shape, dtype, site: Site):
        _, fraction_HC = _channels(shape)
        return (-6.0 + 5.0 * fraction_HC ** (0.7 + 1.3 * depth(site))).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Bonus:
    """l / (L - 1) (1 - i / (A - 1)) + (0, 0.1, -0.1, 0, ...) for channel i of A in layer l of L."""

    def __call__(self, key, shape, dtype, site: Site):
        i_HC, fraction_HC = _channels(shape)
        return (depth(site) * (1.0 - fraction_HC) + 0.1 * ((i_HC + 1.0) % 3.0 - 1.0)).astype(dtype)


@dataclasses.dataclass(frozen=True)
class RWKV6:
    """The time mixer of RWKV-6; sizes left None derive from `d_model`.

    head_dim: C, D / n_heads, or the divisor of D nearest to 64 by their ratio. n_heads: H, D / head_dim; A is D unless both are
    given. mix_rank: R of the five mixes. decay_rank: that of the decay. norm: of o over the channels of a head; the published eps
    is 1e-5 for o / 8.

    Cost per token: 2 x parameters + about 4 A (C + 64) FLOPs at any length, in decoding 2 x parameters + 7 A C. State: A C float32
    numbers per sequence, and the last input.

    Parameters: 5 * d_model * attention + 10 * d_model * mix_rank + 6 * d_model + decay_rank * (d_model + attention)
        + (2 + norm.size) * attention

    decay and bonus are float32, and these and the mixes are spared by weight decay. Initial values are the published code's
    (github.com/BlinkDL/RWKV-LM, x060), by channel and depth, but for those of the projections, which are the library's own for all
    mixers. flash-linear-attention's layer has the same products unscaled, but eps 1e-5 and half as many channels in r and k.

    Raises ValueError for sizes that cannot be.
    """

    d_model: int | None = None
    n_heads: int | None = None
    head_dim: int | None = None
    mix_rank: int = 32
    decay_rank: int = 64
    norm: Norm = LayerNorm(eps=64e-5)

    def __post_init__(self):
        at_least_one(self, "d_model", "n_heads", "head_dim", "mix_rank", "decay_rank")
        if self.d_model is not None:
            self.specs()

    @property
    def head(self) -> int:
        """C."""
        if self.head_dim is not None:
            return self.head_dim
        return _divisor(width(self), 64) if self.n_heads is None else width(self) // self._dividing("n_heads")

    @property
    def heads(self) -> int:
        """H."""
        return width(self) // (self._dividing("head_dim") or self.head) if self.n_heads is None else self.n_heads

    @property
    def attention(self) -> int:
        """A."""
        return self.heads * self.head

    def _dividing(self, name: str) -> int | None:
        """The field, which divides d_model."""
        n, d = getattr(self, name), width(self)
        if n is not None and d % n:
            raise ValueError(f"RWKV6.{name}={n} does not divide d_model={d}; the nearest that does: {_divisor(d, n)}")
        return n

    def specs(self):
        """`r`, `k`, `v`, `g`, `o`; `mix_<name>` of x, r, w, k, v, g, `mix_down`, `mix_up`; `decay`, `decay_down`, `decay_up`;
        `bonus`; `norm`."""
        d, h, c = width(self), self.heads, self.head
        inner, small, half = ((h, c), ("heads", "head_dim")), Uniform(0.01), Before(power=0.5)
        mix_up = stack(Spec((self.mix_rank, d), ("rank", "embed"), small), len(MIXES), axis=None)
        return {
            **dict.fromkeys("rkvg", Spec((d, h, c), ("embed", "heads", "head_dim"))),
            "o": Spec((h, c, d), ("heads", "head_dim", "embed"), residual, n_in=2),
            **mixes("mix", d, x=Before(), r=half, w=Before(), k=Before(), v=Before(rise=0.3), g=half),
            "mix_down": Spec((d, len(MIXES), self.mix_rank), ("embed", None, "rank"), zeros),
            "mix_up": mix_up,
            "decay": Spec(*inner, Decay(), dtype=jnp.float32, n_in=0),
            "decay_down": Spec((d, self.decay_rank), ("embed", "rank"), zeros),
            "decay_up": Spec((self.decay_rank, h, c), ("rank", "heads", "head_dim"), small),
            "bonus": Spec(*inner, Bonus(), dtype=jnp.float32, n_in=0),
            "norm": self.norm.specs(*inner),
        }

    def init_state(self, batch: int, max_len: int, dtype) -> RWKV6State:
        """An empty state, as large for any `max_len`; S is float32 whatever `dtype`."""
        S_BHCC = jnp.zeros((batch, self.heads, self.head, self.head), jnp.float32)
        return RWKV6State(empty_shift(batch, width(self), dtype), S_BHCC)

    def apply(self, params, x_BTD: jax.Array, state: RWKV6State | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        check_state(self, state, x_BTD)
        before_BTD, shift, tokens = shifted(x_BTD, None if state is None else state.shift, ctx)
        low_BTNR = einsum("btd,dnr->btnr", lerp(x_BTD, before_BTD, params["mix_x"]), params["mix_down"])
        more_BTND = einsum("btnr,nrd->btnd", _tanh(low_BTNR), params["mix_up"])
        mix = {name: params[f"mix_{name}"].astype(jnp.float32)[None, None] for name in MIXES}
        share = {name: mix[name] + more_BTND[:, :, n].astype(jnp.float32) for n, name in enumerate(MIXES)}
        mixed = {name: lerp(x_BTD, before_BTD, share[name]) for name in MIXES}
        rkvg_BTHC = {name: project(params, name, "btd,dhc->bthc", mixed[name]) for name in "rkvg"}
        low_BTR = einsum("btd,dr->btr", mixed["w"], params["decay_down"])
        rkvg_BTHC["w"] = einsum("btr,rhc->bthc", _tanh(low_BTR), params["decay_up"])
        o_BTHC, S_BHCC = checkpoint(_recurrence)(
            params["decay"],
            params["bonus"],
            *(rkvg_BTHC[name] for name in "rwkv"),
            None if state is None else state.S,
            tokens,
        )
        h_BTHC = checkpoint(self._gate)(params["norm"], o_BTHC, rkvg_BTHC["g"])
        y_BTD = project(params, "o", "bthc,hcd->btd", h_BTHC)
        return Out(y_BTD, None if state is None else RWKV6State(shift, S_BHCC))

    def _gate(self, params, o_BTHC, g_BTHC):
        """norm(o) silu(g)."""
        h_BTHC = self.norm.apply(params, o_BTHC.astype(jnp.float32))
        return (h_BTHC * jax.nn.silu(g_BTHC.astype(jnp.float32))).astype(o_BTHC.dtype)


def _divisor(n: int, near: int) -> int:
    """The divisor of n nearest to `near` by their ratio."""
    return min((i for i in range(1, n + 1) if n % i == 0), key=lambda i: max(i / near, near / i))


@jax.checkpoint
def _tanh(x):
    return jnp.tanh(x.astype(jnp.float32)).astype(x.dtype)


def _recurrence(decay_HC, bonus_HC, r_BTHC, w_BTHC, k_BTHC, v_BTHC, S_BHCC, tokens):
    """(o_BTHC in r's dtype, S)."""
    decay_BTHC = decay_HC.astype(jnp.float32)[None, None] + w_BTHC.astype(jnp.float32)
    log_a_BTHC = -jnp.exp(jnp.minimum(decay_BTHC, FASTEST))
    k_BTHC, log_a_BTHC = (zero_padding(x, tokens.valid) for x in (k_BTHC, log_a_BTHC))  # adds nothing, forgets nothing
    return gated_linear(r_BTHC, k_BTHC, v_BTHC, log_a_BTHC, S_BHCC, tokens.start, bonus_HC, recompute=False)


@dataclasses.dataclass(frozen=True)
class RWKV6Channel(RWKV4Channel):
    """The channel mixer of RWKV-6: that of RWKV-4, narrower, with mixes that are shares of the token before.

    d_hidden: F; None is 3.5 D, rounded down to a multiple of 32 where it reaches one.

    Cost and state as for `RWKV4Channel`. Initial values: as for `RWKV6`.

    Parameters: 2 * d_model * hidden + d_model * d_model + 2 * d_model

    Raises ValueError for sizes below 1.
    """

    initial_mix: ClassVar[Current] = Before()

    @property
    def hidden(self) -> int:
        """F."""
        if self.d_hidden is not None:
            return self.d_hidden
        f = 7 * width(self) // 2
        return f // 32 * 32 or f

    def _before(self, params, name: str) -> jax.Array:
        return params[f"mix_{name}"]
