"""RWKV-7 (Peng et al. 2025, "RWKV-7 Goose with expressive dynamic state evolution", sections 4 and 5). B batch, T time, D model,
H heads, C head dim, R rank, F hidden.

    x_n = x_t + shift_n (x_{t-1} - x_t);    r, k, v = x_r Wr, x_k Wk, x_v Wv
    log a = -exp(-1/2) sigmoid(decay + tanh(x_w Wd1) Wd2);    i = sigmoid(rate + x_a Wi1 Wi2);    g = sigmoid(x_g Wg1) Wg2
    v <- v + (v_first - v) sigmoid(value + x_v Wv1 Wv2)         in all layers but the first, whose v is v_first
    n = (removal k) / |removal k|;    k <- k (1 + replacement (i - 1))
    S_t = (diag(a_t) - (i n)_t n_t^T) S_{t-1} + k_t v_t^T;    o_t = S_t^T r_t
    out = ((norm(o) + (sum_c bonus r k) v) g) Wo

A delta rule that removes under one key, at a rate of its own for each channel, and writes under another. The channel mixer:

    out = relu(x_k Wk)^2 Wv
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxeff.core.recompute import checkpoint
from jaxeff.core.spec import Constant, Site, Spec, zeros
from jaxeff.core.weight import einsum
from jaxeff.mixers.base import Ctx, Out, at_least_one, project, width
from jaxeff.mixers.deltanet import unit
from jaxeff.mixers.heads import nearest_divisor
from jaxeff.mixers.norm import LayerNorm
from jaxeff.mixers.rwkv import Before, ShiftState, depth, empty_shift, lerp, mixes, shifted, squared
from jaxeff.mixers.state import check_state
from jaxeff.ops.delta_rule import delta_rule
from jaxeff.ops.segments import zero_padding

STRONGEST = -math.exp(-0.5)  # the least log a


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RWKV7State:
    """S: float32 [B, H, C, C]."""

    shift: ShiftState
    S: jax.Array


@dataclasses.dataclass(frozen=True)
class Ramp:
    """start + slope (i / (D - 1) - 1/2) + bend z |z| for channel i of D = H C, z from -1 to 1 within each head; and, where `decay`,
    -6 + 6 (i / (D - 1))^(1 + (l / (L - 1))^0.3) in layer l of L."""

    start: float
    slope: float = 0.0
    bend: float = 0.0
    decay: bool = False

    def __call__(self, key, shape, dtype, site: Site):
        h, c = shape
        fraction = (jnp.arange(h * c, dtype=jnp.float32) / max(h * c - 1, 1)).reshape(h, c)
        z = (jnp.arange(c, dtype=jnp.float32) * 2 - (c - 1)) / max(c - 1, 1)
        value = self.start + self.slope * (fraction - 0.5) + self.bend * (z * jnp.abs(z))[None]
        if self.decay:
            value = value - 6.0 + 6.0 * fraction ** (1.0 + jnp.asarray(depth(site), jnp.float32) ** 0.3)
        return value.astype(dtype)


@dataclasses.dataclass(frozen=True)
class NormScale:
    """((l + 1) / L)^0.7 in layer l of L."""

    def __call__(self, key, shape, dtype, site: Site):
        return jnp.full(shape, ((site.layer + 1) / site.n_layers) ** 0.7, dtype)


@dataclasses.dataclass(frozen=True)
class Orthogonal:
    """Rows or columns, whichever are fewer, orthogonal and of length `gain`; where `scaled`, as much longer as inputs outnumber
    outputs, by the root."""

    gain: float = 1.0
    scaled: bool = False

    def __call__(self, key, shape, dtype, site: Site):
        n_in, n_out = math.prod(shape[: site.n_in]), math.prod(shape[site.n_in :])
        wide = math.sqrt(n_in / n_out) if self.scaled and n_in > n_out else 1.0
        init = jax.nn.initializers.orthogonal(self.gain * wide)
        return init(key, (n_in, n_out), jnp.float32).reshape(shape).astype(dtype)


@dataclasses.dataclass(frozen=True)
class RWKV7:
    """The time mixer of RWKV-7; sizes left None derive from `d_model`.

    head_dim: C, 64 or D where that is less. ranks: of decay, rate, value and gate; None derives the published ones, multiples of
    32 near 2.5, 2.5, 1.7 and 5 sqrt(D). value_residual: v is drawn to the first layer's, which that layer shares as `v_first`;
    False is that first layer, and a layer alone. `models.rwkv7_stages` puts both together. negative: S removes at up to
    1 + exp(-exp(-1/2)) = 1.55 times i, the widest range for which the eigenvalues of diag(a) - (i n) n^T, all real, stay within
    (-1, 1): as published they lie above -0.46, and a parity, say, fades within a few tokens.

    Cost per token: 2 x parameters + about 2 H (5 C^2 + 32 4 C) FLOPs at any length, and the decays of each channel, about 30 D
    exponentials and products in training; in decoding 2 x parameters + 8 D C. State: D C float32 numbers per sequence, and the
    last input.

    Parameters: 4 * d_model**2 + 13 * d_model + 2 * d_model * (rank_decay + rank_rate + rank_gate)
        + ((2 * rank_value + 1) * d_model if value_residual else 0)

    decay, rate, value, removal, replacement, bonus and shifts are spared by weight decay, decay in float32. Initial values are
    the published code's (github.com/BlinkDL/RWKV-LM, RWKV-v7), by channel and depth: o starts at zero.

    Raises ValueError for sizes that cannot be.
    """

    d_model: int | None = None
    head_dim: int | None = None
    ranks: tuple[int, int, int, int] | None = None
    value_residual: bool = False
    negative: bool = False

    def __post_init__(self):
        at_least_one(self, "d_model", "head_dim")
        if self.ranks is not None and not (len(self.ranks) == 4 and min(self.ranks) >= 1):
            raise ValueError(
                f"RWKV7.ranks must be four integers of at least 1, of decay, rate, value, gate, found {self.ranks}"
            )
        if self.d_model is not None:
            self.specs()

    @property
    def reads(self) -> tuple[str, ...]:
        """What is shared by an earlier layer."""
        return ("v_first",) if self.value_residual else ()

    @property
    def writes(self) -> tuple[str, ...]:
        """What is shared with later layers."""
        return () if self.value_residual else ("v_first",)

    @property
    def head(self) -> int:
        """C."""
        return min(64, width(self)) if self.head_dim is None else self.head_dim

    @property
    def heads(self) -> int:
        """H."""
        d, c = width(self), self.head
        if d % c:
            near = nearest_divisor(d, c)
            raise ValueError(f"RWKV7.head_dim={c} does not divide d_model={d}; the nearest that does: {near}")
        return d // c

    def _rank(self, i: int) -> int:
        if self.ranks is not None:
            return self.ranks[i]
        near = (2.5, 2.5, 1.7, 5.0)[i] * width(self) ** 0.5 * (1.0 if i == 3 else self.head / 64)
        return max(32, 32 * round(near / 32))

    rank_decay, rank_rate, rank_value, rank_gate = (property(lambda self, i=i: self._rank(i)) for i in range(4))

    @property
    def norm(self) -> LayerNorm:
        """Of each head's output."""
        return LayerNorm(eps=self.head * 1e-5)

    def specs(self):
        """`r`, `k`, `v`, `o`; `shift_<r, w, k, v, a, g>`; `<decay, rate, value, gate>_low` and `_high`, and biases `decay`, `rate`,
        `value`; `removal`, `replacement`, `bonus`; `norm`."""
        d, h, c = width(self), self.heads, self.head
        inner = ("heads", "head_dim")

        def vector(init, dtype=None):
            return Spec((h, c), inner, init, dtype, n_in=0)

        def low_rank(name, rank):
            high = Spec((rank, h, c), ("rank", *inner), Orthogonal(0.1, scaled=True))
            return {f"{name}_low": Spec((d, rank), ("embed", "rank"), zeros), f"{name}_high": high}

        powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
        specs = mixes("shift", d, **{name: Before(power) for name, power in powers.items()})
        gains = {"r": 1.0, "k": 0.1, "v": 1.0}
        specs |= {name: Spec((d, h, c), ("embed", *inner), Orthogonal(gain)) for name, gain in gains.items()}
        specs |= (
            low_rank("decay", self.rank_decay) | low_rank("rate", self.rank_rate) | low_rank("gate", self.rank_gate)
        )
        specs |= {
            "decay": vector(Ramp(0.5, bend=2.5, decay=True), jnp.float32),
            "rate": vector(Ramp(-0.19, slope=0.4, bend=0.3)),
            "removal": vector(Ramp(0.71, slope=-0.1)),
            "replacement": vector(Constant(1.02)),
            "bonus": vector(Constant(-0.04)),
            "norm": {"scale": vector(NormScale()), "bias": vector(zeros)},
            "o": Spec((h, c, d), (*inner, "embed"), zeros, n_in=2),
        }
        if self.value_residual:
            specs |= low_rank("value", self.rank_value) | {"value": vector(Ramp(0.73, slope=-0.4))}
        return specs

    def init_state(self, batch: int, max_len: int, dtype) -> RWKV7State:
        """An empty state, as large for any `max_len`; S is float32 whatever `dtype`."""
        S_BHCC = jnp.zeros((batch, self.heads, self.head, self.head), jnp.float32)
        return RWKV7State(empty_shift(batch, width(self), dtype), S_BHCC)

    def apply(self, params, x_BTD: jax.Array, state: RWKV7State | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`; shares `v_first` where `value_residual` is False."""
        check_state(self, state, x_BTD)
        before_BTD, shift, tokens = shifted(x_BTD, None if state is None else state.shift, ctx)
        x = {name: lerp(x_BTD, before_BTD, params[f"shift_{name}"]) for name in "rwkvag"}
        r, k, v = (project(params, name, "btd,dhc->bthc", x[name]) for name in "rkv")
        decay = _low_rank(params, "decay", x["w"], jnp.tanh)
        rate = _low_rank(params, "rate", x["a"])
        gate = _low_rank(params, "gate", x["g"], jax.nn.sigmoid)
        first = v
        if self.value_residual:
            v = checkpoint(_drawn)(v, ctx.shared["v_first"], params["value"], _low_rank(params, "value", x["v"]))
        S_BHCC = None if state is None else state.S
        o_BTHC, S_BHCC = checkpoint(self._mix)(params, r, k, v, decay, rate, gate, S_BHCC, tokens)
        y_BTD = project(params, "o", "bthc,hcd->btd", o_BTHC)
        shared = {} if self.value_residual else {"v_first": first}
        return Out(y_BTD, None if state is None else RWKV7State(shift, S_BHCC), shared)

    def _mix(self, params, r, k, v, decay, rate, gate, S_BHCC, tokens):
        """((norm(o) + bonus) g in r's dtype, S): what enters the recurrence, the recurrence, and what it is corrected by."""
        wide = lambda a: a.astype(jnp.float32)
        vector = lambda name: wide(params[name])[None, None]
        r32, k32, v32 = wide(r), wide(k), wide(v)
        log_a = STRONGEST * jax.nn.sigmoid(vector("decay") + wide(decay))
        rate = jax.nn.sigmoid(vector("rate") + wide(rate))
        n_BTHC = unit(k32 * vector("removal"), 1e-12)
        k32 = k32 * (1.0 + vector("replacement") * (rate - 1.0))
        widest = 1.0 + math.exp(STRONGEST) if self.negative else 1.0
        u, written, log_a = (zero_padding(a, tokens.valid) for a in (-widest * rate * n_BTHC, k32, log_a))
        o, S_BHCC = delta_rule(r32, written, v32, u, n_BTHC, log_a, S_BHCC, tokens.start, recompute=False)
        o = self.norm.apply(params["norm"], o)
        o = o + jnp.sum(vector("bonus") * r32 * k32, axis=-1, keepdims=True) * v32
        return (o * wide(gate)).astype(r.dtype), S_BHCC


def _low_rank(params, name: str, x_BTD, activation=lambda x: x):
    """act(x W1) W2, [B, T, H, C]."""
    low_BTR = activation(einsum("btd,dr->btr", x_BTD, params[f"{name}_low"]))
    return einsum("btr,rhc->bthc", low_BTR, params[f"{name}_high"])


def _drawn(v, v_first, bias_HC, low_rank):
    """v + (v_first - v) sigmoid(bias + low_rank), rounded once."""
    share = jax.nn.sigmoid(bias_HC.astype(jnp.float32)[None, None] + low_rank.astype(jnp.float32))
    return (v.astype(jnp.float32) + share * (v_first.astype(jnp.float32) - v.astype(jnp.float32))).astype(v.dtype)


@dataclasses.dataclass(frozen=True)
class RWKV7Channel:
    """The channel mixer of RWKV-7; y_t depends on x_t and x_{t-1}.

    d_hidden: F; None is 4 D. Cost per token: 2 x parameters FLOPs in the forward pass, the same in decoding. State: the last
    input. Initial values as published: v starts at zero.

    Parameters: 2 * d_model * hidden + d_model
    """

    d_model: int | None = None
    d_hidden: int | None = None

    def __post_init__(self):
        at_least_one(self, "d_model", "d_hidden")

    @property
    def hidden(self) -> int:
        """F."""
        return 4 * width(self) if self.d_hidden is None else self.d_hidden

    def specs(self):
        """`k`, `v`; `shift_k`."""
        d, f = width(self), self.hidden
        return {
            "k": Spec((d, f), ("embed", "mlp"), Orthogonal()),
            "v": Spec((f, d), ("mlp", "embed"), zeros),
            **mixes("shift", d, k=Before(exponent=4.0)),
        }

    def init_state(self, batch: int, max_len: int, dtype) -> ShiftState:
        """No input yet."""
        return empty_shift(batch, width(self), dtype)

    def apply(self, params, x_BTD: jax.Array, state: ShiftState | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        check_state(self, state, x_BTD)
        before_BTD, state, _ = shifted(x_BTD, state, ctx)
        k_BTF = project(params, "k", "btd,df->btf", lerp(x_BTD, before_BTD, params["shift_k"]))
        return Out(project(params, "v", "btf,fd->btd", squared(k_BTF)), state)
