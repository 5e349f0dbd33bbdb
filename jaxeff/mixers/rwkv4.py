"""RWKV-4 (Peng et al. 2023, "RWKV: reinventing RNNs for the Transformer era", section 3). B batch, T time, D model, A attention,
F hidden.

    mixed_n = n x_t + (1 - n) x_{t-1};    r, k, v = W mixed;    out = Wo (sigmoid(r) wkv(k, v))        the time mixer
    out = sigmoid(Wr mixed_r) Wv relu(Wk mixed_k)^2                                                    the channel mixer

wkv is a weighted average of the values so far, see `ops.wkv`: weights e^k fade by e^{-w} a token, w = exp(decay), and a bonus is
added to the current token's k. Nothing but the token shift looks back in the channel mixer.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxeff.core.recompute import checkpoint
from jaxeff.core.spec import Site, Spec, residual
from jaxeff.mixers.base import Ctx, Out, at_least_one, project, width
from jaxeff.mixers.rwkv import Current, ShiftState, depth, empty_shift, lerp, mixes, shifted, squared
from jaxeff.mixers.state import check_state
from jaxeff.ops.wkv import WKVState, empty_wkv, wkv


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RWKV4State:
    """wkv: float32, three of [B, A]."""

    shift: ShiftState
    wkv: WKVState


@dataclasses.dataclass(frozen=True)
class Decay:
    """-5 + 8 (i / (A - 1))^(0.7 + 1.3 l / (L - 1)) for channel i of A in layer l of L: slow to fast, fewer fast in later layers."""

    def __call__(self, key, shape, dtype, site: Site):
        fraction_A = jnp.arange(shape[0], dtype=jnp.float32) / max(shape[0] - 1, 1)
        return (-5.0 + 8.0 * fraction_A ** (0.7 + 1.3 * depth(site))).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Bonus:
    """log 0.3 + (0, 1/2, -1/2, 0, ...)."""

    def __call__(self, key, shape, dtype, site: Site):
        zigzag_A = (jnp.arange(shape[0]) + 1) % 3 - 1
        return (math.log(0.3) + 0.5 * zigzag_A.astype(jnp.float32)).astype(dtype)


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
            **mixes("mix", d, k=Current(), v=Current(rise=0.3), r=Current(power=0.5)),
            "decay": Spec((a,), ("heads",), Decay(), dtype=jnp.float32, n_in=0),
            "bonus": Spec((a,), ("heads",), Bonus(), dtype=jnp.float32, n_in=0),
        }

    def init_state(self, batch: int, max_len: int, dtype) -> RWKV4State:
        """An empty state, as large for any `max_len`; sums are float32 whatever `dtype`."""
        return RWKV4State(empty_shift(batch, width(self), dtype), empty_wkv(batch, self.attention))

    def apply(self, params, x_BTD: jax.Array, state: RWKV4State | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        check_state(self, state, x_BTD)
        before_BTD, shift, tokens = shifted(x_BTD, None if state is None else state.shift, ctx)
        kvr_BTA = [
            project(params, name, "btd,da->bta", lerp(x_BTD, before_BTD, _before(params, name))) for name in "kvr"
        ]
        h_BTA, sums = checkpoint(_average)(
            params["decay"], params["bonus"], *kvr_BTA, None if state is None else state.wkv, tokens
        )
        y_BTD = project(params, "o", "bta,ad->btd", h_BTA)
        return Out(y_BTD, None if state is None else RWKV4State(shift, sums))


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

    initial_mix: ClassVar[Current] = Current()

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
            **mixes("mix", d, k=self.initial_mix, r=self.initial_mix),
        }

    def init_state(self, batch: int, max_len: int, dtype) -> ShiftState:
        """No input yet."""
        return empty_shift(batch, width(self), dtype)

    def apply(self, params, x_BTD: jax.Array, state: ShiftState | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        check_state(self, state, x_BTD)
        before_BTD, state, _ = shifted(x_BTD, state, ctx)
        k_BTF = project(params, "k", "btd,df->btf", lerp(x_BTD, before_BTD, self._before(params, "k")))
        r_BTD = project(params, "r", "btd,de->bte", lerp(x_BTD, before_BTD, self._before(params, "r")))
        return Out(_gated(r_BTD, project(params, "v", "btf,fd->btd", squared(k_BTF))), state)

    def _before(self, params, name: str) -> jax.Array:
        """The share [D] of the token before in what `name` is made of."""
        return _before(params, name)


def _before(params, name: str) -> jax.Array:
    """Mixes are shares of the current token."""
    return 1.0 - params[f"mix_{name}"].astype(jnp.float32)


@jax.checkpoint
def _gated(r_BTD, v_BTD):
    """sigmoid(r) v."""
    return (jax.nn.sigmoid(r_BTD.astype(jnp.float32)) * v_BTD.astype(jnp.float32)).astype(v_BTD.dtype)
