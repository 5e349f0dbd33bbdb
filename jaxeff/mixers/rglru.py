"""The recurrent block of Griffin (De et al. 2024, "Griffin", section 2), as RecurrentGemma has it. B batch, T time, D model,
R recurrent channels, H blocks of C channels each.

    out = (gelu(u Wy) h) Wo;    x = conv(u Wx);    r, i = sigmoid(x Wr + br), sigmoid(x Wi + bi)
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t;    log a_t = -8 softplus(a_param) r_t

Wr and Wi are block-diagonal. The first token of a text is taken as it is: h = i x there, and nothing is left of the text before.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxeff.core import sequence
from jaxeff.core.recompute import checkpoint
from jaxeff.core.spec import Site, Spec, residual, stack, zeros
from jaxeff.core.weight import einsum
from jaxeff.mixers.base import Ctx, Out, at_least_one, biased, project, width
from jaxeff.mixers.heads import nearest_divisor
from jaxeff.mixers.short_conv import ShortConv
from jaxeff.mixers.state import check_state
from jaxeff.ops.diagonal_scan import diagonal_scan
from jaxeff.ops.segments import Row, Tokens, empty_row, zero_padding

SHARPNESS = 8.0  # c of the paper: log a is at most this many times -softplus(a_param)
STEEPEST = 1000.0  # the gradient of the square root, which is infinite at a = 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RGLRUState:
    """h: float32 [B, R]. taps: the last inputs of the convolution, [B, W - 1, H, C]."""

    h: jax.Array
    taps: jax.Array
    row: Row


@dataclasses.dataclass(frozen=True)
class Ring:
    """The a_param whose decay exp(-softplus(a_param)) is in [low, high], its square uniform: a point of a ring in the plane
    (Orvieto et al. 2023, "Resurrecting recurrent neural networks", lemma 3.2)."""

    low: float
    high: float

    def __call__(self, key, shape, dtype, site: Site):
        square = jax.random.uniform(key, shape, jnp.float32, self.low**2, self.high**2)
        return jnp.log(jnp.expm1(-0.5 * jnp.log(square))).astype(dtype)


@dataclasses.dataclass(frozen=True)
class RGLRU:
    """The real-gated linear recurrent unit with its convolution and its gate; sizes left None derive from `d_model`.

    d_rnn: R, None for D. n_heads: H; None for the most blocks of at least 32 channels, or 64 from R = 512. conv: of x.
    biases: names among y, x, o; those of r and i are always there. a_range: of the initial exp(-softplus(a_param)), its square
    uniform.

    Cost per token: 2 x parameters + about 30 R FLOPs at any length and in decoding. State: R float32 numbers per sequence, and
    the (W - 1) R last inputs of the convolution.

    Parameters: 3 * d_model * rnn + 2 * rnn * head + 3 * rnn + conv.count(rnn)
        + (("y" in biases) + ("x" in biases)) * rnn + ("o" in biases) * d_model

    a_param and the biases of r and i are float32 and spared by weight decay. As in the published code, `a_range` is that of
    exp(-softplus(a_param)), where the paper has its eighth power; the gradient of the square root is at most 1000. Differs from
    the published code in the initial values of the projections, which are the library's own for all mixers.

    Raises ValueError for sizes that cannot be.
    """

    d_model: int | None = None
    d_rnn: int | None = None
    n_heads: int | None = None
    conv: ShortConv = ShortConv(activation=None)
    biases: tuple[str, ...] = ("y", "x", "o")
    a_range: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self):
        at_least_one(self, "d_model", "d_rnn", "n_heads")
        low, high = self.a_range
        if not 0 < low <= high < 1:
            raise ValueError(f"RGLRU.a_range must be (low, high), rising and between 0 and 1, found {(low, high)}")
        if self.d_model is not None:
            self.specs()

    @property
    def rnn(self) -> int:
        """R."""
        return width(self) if self.d_rnn is None else self.d_rnn

    @property
    def heads(self) -> int:
        """H."""
        r, n = self.rnn, self.n_heads
        if n is None:
            return max(h for h in range(1, r + 1) if r % h == 0 and (h == 1 or r // h >= (32 if r < 512 else 64)))
        if r % n:
            near = nearest_divisor(r, n)
            raise ValueError(f"RGLRU.n_heads={n} does not divide d_rnn={r}; the nearest that does: {near}")
        return n

    @property
    def head(self) -> int:
        """C."""
        return self.rnn // self.heads

    def specs(self):
        """`y`, `x`, `o` and their `<name>_bias`; `conv_x`; `r`, `i`, `r_bias`, `i_bias`; `a_param`."""
        d, h, c = width(self), self.heads, self.head
        inner = (h, c), ("heads", "head_dim")
        inwards = Spec((d, h, c), ("embed", "heads", "head_dim"))
        outwards = Spec((h, c, d), ("heads", "head_dim", "embed"), residual, n_in=2)
        gate = stack(Spec((c, c), ("head_dim", "head_dim")), h, axis="heads")
        gate_bias = Spec(*inner, zeros, dtype=jnp.float32, n_in=0)
        return biased({"y": inwards, "x": inwards, "o": outwards}, self.biases, self) | {
            "conv_x": self.conv.specs(*inner),
            "r": gate,
            "i": gate,
            "r_bias": gate_bias,
            "i_bias": gate_bias,
            "a_param": Spec(*inner, Ring(*self.a_range), dtype=jnp.float32, n_in=0),
        }

    def init_state(self, batch: int, max_len: int, dtype) -> RGLRUState:
        """An empty state, as large for any `max_len`; h is float32 whatever `dtype`."""
        h_BR = jnp.zeros((batch, self.rnn), jnp.float32)
        return RGLRUState(h_BR, self.conv.init_state(batch, (self.heads, self.head), dtype), empty_row(batch))

    def apply(self, params, x_BTD: jax.Array, state: RGLRUState | None = None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`."""
        check_state(self, state, x_BTD)
        before = None if state is None else state.row
        tokens, row = ctx.tokens(x_BTD, before)
        h_BR, taps = (None, None) if state is None else (state.h, state.taps)
        y_BTHC, x_BTHC = (project(params, name, "btd,dhc->bthc", x_BTD) for name in "yx")
        x_BTHC, taps = self.conv.apply(params["conv_x"], x_BTHC, taps, tokens, "heads", ctx)
        r_BTHC, i_BTHC = (einsum("bthc,hce->bthe", x_BTHC, params[name]) for name in "ri")  # biases in float32
        first_BT = _first(x_BTD.shape[:2], tokens, before)
        scan = checkpoint(functools.partial(_scan, mesh=ctx.mesh, rules=ctx.rules))
        y_BTHC, h_BR = scan(params, x_BTHC, r_BTHC, i_BTHC, y_BTHC, h_BR, tokens.valid, first_BT)
        y_BTD = project(params, "o", "bthc,hcd->btd", y_BTHC)
        return Out(y_BTD, None if state is None else RGLRUState(h_BR, taps, row))


def _first(shape_BT: tuple[int, int], tokens: Tokens, before: Row | None) -> jax.Array:
    """Which tokens are the first of a text, the first text of a row included: bool [B, T]."""
    new_B = jnp.ones(shape_BT[:1], bool) if before is None else before.segment == 0
    valid_BT = jnp.ones(shape_BT, bool) if tokens.valid is None else tokens.valid
    if sequence.sliced():
        none_B = jnp.zeros(shape_BT[:1], bool)
        new_B = new_B & ~sequence.before(jnp.any(valid_BT, axis=1), jnp.logical_or, none_B)
    opens_BT = new_B[:, None] & valid_BT & (jnp.cumsum(valid_BT, axis=1) == 1)
    return opens_BT if tokens.start is None else tokens.start | opens_BT


def _scan(params, x_BTHC, r_BTHC, i_BTHC, y_BTHC, h_BR, valid_BT, first_BT, **spread):
    """(gelu(y) h in x's dtype, the last h): all that is float32. spread: mesh and rules."""

    def f32(name):
        return params[name].astype(jnp.float32)[None, None]

    x32, r, i, y = (x.astype(jnp.float32) for x in (x_BTHC, r_BTHC, i_BTHC, y_BTHC))
    r, i = jax.nn.sigmoid(r + f32("r_bias")), jax.nn.sigmoid(i + f32("i_bias"))
    log_a = -SHARPNESS * jax.nn.softplus(f32("a_param")) * r
    scale = jnp.where(first_BT[:, :, None, None], 1.0, bounded_sqrt(-jnp.expm1(2.0 * log_a)))
    log_a, x32 = (zero_padding(x, valid_BT) for x in (log_a, scale * i * x32))  # adds nothing, forgets nothing
    flat_BTR = (*x32.shape[:2], -1)
    log_a, x32 = (x.reshape(flat_BTR) for x in (log_a, x32))
    h_BTR, h_BR = diagonal_scan(log_a, x32, h_BR, first_BT, recompute=False, **spread)
    return (jax.nn.gelu(y) * h_BTR.reshape(y.shape)).astype(x_BTHC.dtype), h_BR


@jax.custom_jvp
def bounded_sqrt(x: jax.Array) -> jax.Array:
    """The square root, its gradient at most `STEEPEST`."""
    return jnp.sqrt(x)


bounded_sqrt.defjvps(lambda dx, y, x: dx / jnp.maximum(2.0 * y, 1.0 / STEEPEST))
