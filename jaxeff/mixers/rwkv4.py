"""RWKV-4 (Peng et al. 2023, "RWKV: reinventing RNNs for the Transformer era", section 3). B batch, T time, D model, A attention,
F hidden.

    mixed_n = n x_t + (1 - n) x_{t-1};    r, k, v = W mixed;    out = Wo (sigmoid(r) wkv(k, v))        the time mixer
    out = sigmoid(Wr mixed_r) Wv relu(Wk mixed_k)^2                                                    the channel mixer

wkv is a weighted average of the values so far, see `ops.wkv`: weights e^k fade by e^{-w} a token, w = exp(decay), and a bonus is
added to the current token's k. Nothing but the token shift looks back in the channel mixer.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Site, Spec, residual
from jaxeff.mixers.base import Ctx, Out, at_least_one, project, width
from jaxeff.mixers.mlp import relu_squared
from jaxeff.ops.conv import token_shift
from jaxeff.ops.segments import Row, empty_row
from jaxeff.ops.wkv import WKVState, empty_wkv, wkv


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RWKV4State:
    """x: the last input [B, D]. wkv: float32, three of [B, A]."""

    x: jax.Array
    wkv: WKVState
    row: Row


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RWKV4ChannelState:
    """x: the last input [B, D]."""

    x: jax.Array
    row: Row


def _depth(site: Site):
    """0 in the first layer to 1 in the last one; 0 where there is but one."""
    return site.layer / max(site.n_layers - 1, 1)


@dataclasses.dataclass(frozen=True)
class Mix:
    """(i / D)^(power (1 - l / L)) + rise l / (L - 1) for channel i of D in layer l of L: ever more of the current token."""

    power: float = 1.0
    rise: float = 0.0

    def __call__(self, key, shape, dtype, site: Site):
        fraction_D = jnp.arange(shape[0], dtype=jnp.float32) / shape[0]
        mix_D = fraction_D ** (self.power * (1.0 - site.layer / site.n_layers)) + self.rise * _depth(site)
        return mix_D.astype(dtype)


@dataclasses.dataclass(frozen=True)
class Decay:
    """-5 + 8 (i / (A - 1))^(0.7 + 1.3 l / (L - 1)) for channel i of A in layer l of L: slow to fast, fewer fast in later layers."""

    def __call__(self, key, shape, dtype, site: Site):
        fraction_A = jnp.arange(shape[0], dtype=jnp.float32) / max(shape[0] - 1, 1)
        return (-5.0 + 8.0 * fraction_A ** (0.7 + 1.3 * _depth(site))).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Bonus:
    """log 0.3 + (0, 1/2, -1/2, 0, ...)."""

    def __call__(self, key, shape, dtype, site: Site):
        zigzag_A = (jnp.arange(shape[0]) + 1) % 3 - 1
        return (math.log(0.3) + 0.5 * zigzag_A.astype(jnp.float32)).astype(dtype)


def _mixes(d: int, **inits: Mix) -> dict[str, Spec]:
    """`mix_<name>` of the token shift."""
    return {f"mix_{name}": Spec((d,), ("embed",), init, n_in=0) for name, init in inits.items()}


def _shifted(x_BTD, state, ctx: Ctx):
    """(x one token back, the last x in the state's dtype, tokens, row)."""
    tokens, row = ctx.tokens(x_BTD, None if state is None else state.row)
    before_BTD, last_BD = token_shift(x_BTD, None if state is None else state.x, tokens.valid, tokens.start)
    return before_BTD, None if state is None else last_BD.astype(state.x.dtype), tokens, row


@jax.checkpoint
def _mixed(x_BTD, before_BTD, mix_D):
    """mix x_t + (1 - mix) x_{t-1}, rounded once."""
    mix_11D = mix_D.astype(jnp.float32)[None, None]
    mixed_BTD = x_BTD.astype(jnp.float32) * mix_11D + before_BTD.astype(jnp.float32) * (1.0 - mix_11D)
    return mixed_BTD.astype(x_BTD.dtype)


@dataclasses.dataclass(frozen=True)
class RWKV4:
    """The time mixer of RWKV-4.

    d_attention: A; None is D.

    Cost per token: 2 x parameters + about 45 A FLOPs at any length and in decoding. State: 3 A float32 numbers per sequence, and
    the last input.

    Parameters: 4 * d_model * attention + 3 * d_model + 2 * attention

    decay and bonus are float32, and these and the mixes are spared by weight decay. Their initial values are the published
    code's (github.com/BlinkDL/RWKV-LM, RWKV-v4), by channel and depth; Transformers' differ in the bonus, which is 1 there. The
    initial values of the projections are the library's own for all mixers.

    Raises ValueError for sizes below 1.
    """

    d_model: int | None = None
    d_attention: int | None = None

    def __post_init__(self):
        at_least_one(self, "d_model", "d_attention")

    @property
    def attention(self) -> int:
        """A."""
        return width(self) if self.d_attention is None else self.d_attention

    def specs(self):
        """`k`, `v`, `r`, `o`; `mix_k`, `mix_v`, `mix_r`; `decay`, `bonus`."""
        d, a = width(self), self.attention
        inwards = Spec((d, a), ("embed", "heads"))
        return {
            **dict.fromkeys("kvr", inwards),
            "o": Spec((a, d), ("heads", "embed"), residual),
            **_mixes(d, k=Mix(), v=Mix(rise=0.3), r=Mix(power=0.5)),
            "decay": Spec((a,), ("heads",), Decay(), dtype=jnp.float32, n_in=0),
            "bonus": Spec((a,), ("heads",), Bonus(), dtype=jnp.float32, n_in=0),
        }

    def init_state(self, batch: int, max_len: int, dtype) -> RWKV4State:
        """An empty state, as large for any `max_len`; sums are float32 whatever `dtype`."""
        x_BD = jnp.zeros((batch, width(self)), dtype)
        return RWKV4State(x_BD, empty_wkv(batch, self.attention), empty_row(batch))

    def apply(self, params, x_BTD: jax.Array, state: RWKV4State | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        before_BTD, last_BD, tokens, row = _shifted(x_BTD, state, ctx)
        kvr_BTA = [
            project(params, name, "btd,da->bta", _mixed(x_BTD, before_BTD, params[f"mix_{name}"])) for name in "kvr"
        ]
        h_BTA, sums = jax.checkpoint(_average)(
            params["decay"], params["bonus"], *kvr_BTA, None if state is None else state.wkv, tokens
        )
        y_BTD = project(params, "o", "bta,ad->btd", h_BTA)
        return Out(y_BTD, None if state is None else RWKV4State(last_BD, sums, row))


def _average(decay_A, bonus_A, k_BTA, v_BTA, r_BTA, sums, tokens):
    """(sigmoid(r) wkv in k's dtype, the sums after)."""
    k32_BTA, r32_BTA = k_BTA.astype(jnp.float32), r_BTA.astype(jnp.float32)
    log_decay_A = -jnp.exp(decay_A.astype(jnp.float32))
    h_BTA, sums = wkv(k32_BTA, v_BTA, log_decay_A, bonus_A, sums, tokens.start, tokens.valid, recompute=False)
    return (jax.nn.sigmoid(r32_BTA) * h_BTA).astype(k_BTA.dtype), sums


@dataclasses.dataclass(frozen=True)
class RWKV4Channel:
    """The channel mixer of RWKV-4; y_t depends on x_t and x_{t-1}.

    d_hidden: F; None is 4 D.

    Cost per token: 2 x parameters FLOPs in the forward pass, the same in decoding. State: the last input.

    Parameters: 2 * d_model * hidden + d_model * d_model + 2 * d_model

    Initial values: as for `RWKV4`.

    Raises ValueError for sizes below 1.
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
        """`k`, `v`, `r`; `mix_k`, `mix_r`."""
        d, f = width(self), self.hidden
        return {
            "k": Spec((d, f), ("embed", "mlp")),
            "v": Spec((f, d), ("mlp", "embed"), residual),
            "r": Spec((d, d), ("embed", None)),
            **_mixes(d, k=Mix(), r=Mix()),
        }

    def init_state(self, batch: int, max_len: int, dtype) -> RWKV4ChannelState:
        """No input yet."""
        return RWKV4ChannelState(jnp.zeros((batch, width(self)), dtype), empty_row(batch))

    def apply(self, params, x_BTD: jax.Array, state: RWKV4ChannelState | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        before_BTD, last_BD, _, row = _shifted(x_BTD, state, ctx)
        k_BTF = project(params, "k", "btd,df->btf", _mixed(x_BTD, before_BTD, params["mix_k"]))
        r_BTD = project(params, "r", "btd,de->bte", _mixed(x_BTD, before_BTD, params["mix_r"]))
        v_BTD = project(params, "v", "btf,fd->btd", _relu_squared(k_BTF))
        return Out(_gated(r_BTD, v_BTD), None if state is None else RWKV4ChannelState(last_BD, row))


@jax.checkpoint
def _relu_squared(k_BTF):
    return relu_squared(k_BTF.astype(jnp.float32)).astype(k_BTF.dtype)


@jax.checkpoint
def _gated(r_BTD, v_BTD):
    """sigmoid(r) v."""
    return (jax.nn.sigmoid(r_BTD.astype(jnp.float32)) * v_BTD.astype(jnp.float32)).astype(v_BTD.dtype)
