"""Mixers of a few lines that use what the contract offers beside y: shared values, states, auxiliary values. B batch, T time,
D model."""

import dataclasses

import jax.numpy as jnp

from jaxeff.core.spec import Constant, Spec, residual
from jaxeff.mixers.base import Ctx, Out, project
from jaxeff.ops.conv import token_shift
from jaxeff.ops.segments import empty_row


def square(d, *, inputs=1, out=False):
    """A weight from `inputs` * d to d channels; out: one that writes to the residual stream."""
    return Spec((inputs * d, d), ("mlp", "embed"), residual) if out else Spec((inputs * d, d), ("embed", "mlp"))


def empty(batch, d, dtype):
    return {"x": jnp.zeros((batch, d), dtype), "row": empty_row(batch)}


def one_back(x_BTD, state, ctx):
    """(x_{t-1} at every t, the new state)."""
    before_BD, row = (None, None) if state is None else (state["x"], state["row"])
    tokens, row = ctx.tokens(x_BTD, row)
    y_BTD, last_BD = token_shift(x_BTD, before_BD, tokens.valid, tokens.start)
    return y_BTD, None if state is None else {"x": last_BD.astype(before_BD.dtype), "row": row}


@dataclasses.dataclass(frozen=True)
class Toy:
    """No parameters, no state."""

    d_model: int | None = None

    def specs(self):
        return {}

    def init_state(self, batch, max_len, dtype):
        return ()


class FirstValue(Toy):
    """v = x Wv, shared; y = v."""

    writes = ("v_first",)

    def specs(self):
        return {"v": square(self.d_model)}

    def apply(self, params, x_BTD, state=None, *, ctx=Ctx()):
        v_BTD = project(params, "v", "btd,de->bte", x_BTD)
        return Out(v_BTD, state, {"v_first": v_BTD})


class Shift(Toy):
    """h = x_t + mix (x_{t-1} - x_t); y = (tanh(h W) + v_first) Wo."""

    reads = ("v_first",)

    def specs(self):
        d = self.d_model
        return {"mix": Spec((d,), ("embed",), Constant(0.4), n_in=0), "w": square(d), "o": square(d, out=True)}

    def init_state(self, batch, max_len, dtype):
        return empty(batch, self.d_model, dtype)

    def apply(self, params, x_BTD, state=None, *, ctx=Ctx()):
        before_BTD, state = one_back(x_BTD, state, ctx)
        h_BTD = x_BTD + params["mix"].astype(x_BTD.dtype)[None, None] * (before_BTD - x_BTD)
        h_BTD = jnp.tanh(project(params, "w", "btd,de->bte", h_BTD)) + ctx.shared["v_first"]
        return Out(project(params, "o", "btd,de->bte", h_BTD), state)


class Pair(Toy):
    """y = tanh([x_t + x_{t-1}, embedding] W) Wo: the two inputs of Zamba2's shared block."""

    reads = ("embedding",)

    def specs(self):
        return {"w": square(self.d_model, inputs=2), "o": square(self.d_model, out=True)}

    def init_state(self, batch, max_len, dtype):
        return empty(batch, self.d_model, dtype)

    def apply(self, params, x_BTD, state=None, *, ctx=Ctx()):
        before_BTD, state = one_back(x_BTD, state, ctx)
        both_BTD = jnp.concatenate([x_BTD + before_BTD, ctx.shared["embedding"]], axis=-1)
        return Out(project(params, "o", "btd,de->bte", jnp.tanh(project(params, "w", "btd,de->bte", both_BTD))), state)


class Told(Toy):
    """y = x W; tells a loss, 0.1 times the mean square of y, and two numbers."""

    def specs(self):
        return {"w": square(self.d_model, out=True)}

    def apply(self, params, x_BTD, state=None, *, ctx=Ctx()):
        y_BTD = project(params, "w", "btd,de->bte", x_BTD)
        y32_BTD = y_BTD.astype(jnp.float32)
        load = jnp.stack([jnp.mean(y32_BTD), jnp.mean(jnp.abs(y32_BTD))])
        return Out(y_BTD, state, aux={"loss": 0.1 * jnp.mean(y32_BTD**2), "load": load})


class Ones(Toy):
    """y = 1: what dropout leaves of it is its mask."""

    def apply(self, params, x_BTD, state=None, *, ctx=Ctx()):
        return Out(jnp.ones_like(x_BTD), state)


class Secret(Toy):
    """Shares what it does not declare."""

    def apply(self, params, x_BTD, state=None, *, ctx=Ctx()):
        return Out(x_BTD, state, {"secret": x_BTD})
