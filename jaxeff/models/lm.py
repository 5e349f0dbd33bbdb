"""A language model: embedding, stack, norm, head. B batch, T time, D model, V vocabulary."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Normal, Spec, fan_in, zeros
from jaxeff.core.weight import Shifted, einsum, take
from jaxeff.mixers import start
from jaxeff.mixers.base import Ctx, Out
from jaxeff.mixers.norm import Norm, RMSNorm
from jaxeff.models.stack import Stack, Stage
from jaxeff.ops.segments import empty_row


@dataclasses.dataclass(frozen=True)
class LM:
    """A causal language model.

    stages: see `models.stack`. tied: the head is the embedding. embed_scale: what embeddings are multiplied by, a factor or "sqrt"
    for sqrt(D); learned_positions: a vector for each of `max_positions` places is added to them (GPT-2); embed_norm: a norm after
    that. head_bias: of the logits (Phi). softcap: c tanh(logits / c). remat: what the backward pass recomputes, see
    `models.stack.REMAT`. scan False unrolls the layers (same parameters). max_positions: the longest text the model may see, None
    for no bound.

    Raises ValueError for impossible sizes, UserError for unknown names and shared values that nobody writes.
    """

    vocab_size: int
    d_model: int = 256
    stages: tuple[Stage, ...] = (Stage(("gqa",), 4),)
    tied: bool = True
    embed_scale: float | Literal["sqrt"] | None = None
    embed_norm: Norm | None = None
    learned_positions: bool = False
    head_bias: bool = False
    softcap: float | None = None
    norm: Norm = RMSNorm()
    remat: Literal["none", "dots", "narrow", "attention", "full"] = "none"
    scan: bool = True
    max_positions: int | None = None

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "max_positions"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"LM.{name} must be at least 1, found {getattr(self, name)}")
        for name in ("softcap", "embed_scale"):
            value = getattr(self, name)
            if value is not None and value != "sqrt" and not value > 0:
                raise ValueError(f"LM.{name} must be above 0, or None, found {value}")
        for name, optional in (("norm", False), ("embed_norm", True)):
            value = getattr(self, name)
            if not isinstance(value, Norm) and not (optional and value is None):
                raise ValueError(f"LM.{name} must be RMSNorm(...) or LayerNorm(...), found {value!r}")
        if self.learned_positions and self.max_positions is None:
            raise ValueError("LM.learned_positions needs max_positions, the number of places that have a vector")
        self.specs()

    @functools.cached_property
    def stack(self) -> Stack:
        """The stages, their blocks made for this model's width."""
        return Stack(self.stages, self.d_model, self.remat, self.scan)

    @property
    def n_layers(self) -> int:
        """Number of blocks, repeats counted."""
        return self.stack.n_layers

    def specs(self):
        """`embed`, the stack's `blocks/<i>/...` and `tied/<name>/...`, `norm/scale`; `head` where untied, `head_bias`, `positions`,
        `embed_norm/scale`."""
        width = (self.d_model,), ("embed",)
        specs = {"embed": Spec((self.vocab_size, self.d_model), ("vocab", "embed"), Normal(0.02))}
        specs |= self.stack.specs()
        specs["norm"] = self.norm.specs(*width)
        if self.embed_norm is not None:
            specs["embed_norm"] = self.embed_norm.specs(*width)
        if not self.tied:
            specs["head"] = Spec((self.d_model, self.vocab_size), ("embed", "vocab"), fan_in)
        if self.head_bias:
            specs["head_bias"] = Spec((self.vocab_size,), ("vocab",), zeros, n_in=0)
        if self.learned_positions:
            specs["positions"] = Spec((self.max_positions, self.d_model), (None, "embed"), Normal(0.02))
        return specs

    def init_state(self, batch: int, max_len: int, dtype=jnp.float32):
        """Decode states for texts of at most `max_len` tokens, stacked like the parameters; beside them the next `position` of each
        row where positions are learned."""
        state = self.stack.init_state(batch, max_len, dtype)
        return (
            state | {"position": jax.tree.map(lambda x: x[None], empty_row(batch))} if self.learned_positions else state
        )

    def start(self, params, batch: int, max_len: int, *, ctx: Ctx = Ctx()):
        """The state that texts of at most `max_len` tokens begin with: an empty one, or what was learned, see `mixers.start`."""
        learned, dtype = params.get(start.START, {}), jnp.dtype(ctx.policy.compute)
        empty = self.init_state(batch, start.length(learned) + max_len, dtype)
        if not learned:
            return empty
        if "prompt" not in learned:
            return start.started(empty, learned["state"])
        # Read once for all texts, on every device alike.
        state = jax.tree.map(lambda leaf: leaf[:, :1], empty)
        if "state" in learned:
            state = start.started(state, learned["state"])
        own = Ctx(key=ctx.key, policy=ctx.policy).fold("prompt")
        state = self._run(params, learned["prompt"][None].astype(dtype), state, own).state
        return jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), state, empty)

    def apply(self, params, tokens_BT: jax.Array, state=None, *, ctx: Ctx = Ctx()) -> Out:
        """y: logits_BTV in float32. The rest as for `hidden`."""
        out = self.hidden(params, tokens_BT, state, ctx=ctx)
        return out._replace(y=self.logits(params, out.y))

    def logits(self, params, x_BTD: jax.Array) -> jax.Array:
        """float32 logits of final hidden states."""
        weight, axes = self.head(params)
        logits_BTV = einsum(f"btd,{axes}->btv", x_BTD, weight, jnp.float32)
        return logits_BTV if self.softcap is None else self.softcap * jnp.tanh(logits_BTV / self.softcap)

    def head(self, params) -> tuple[Any, str]:
        """(the output weight, "vd" or "dv", the order of its axes)."""
        weight, axes = (params["embed"], "vd") if self.tied else (params["head"], "dv")
        return (Shifted(weight, params["head_bias"]) if self.head_bias else weight), axes

    def hidden(self, params, tokens_BT: jax.Array, state=None, *, ctx: Ctx = Ctx()) -> Out:
        """y: x_BTD after the final norm in the compute dtype, which the head, or a loss that never forms logits, reads. aux by path
        (`blocks/1/mlp/load`), stacked over repeats. Without a state, texts begin with what was learned, if anything was."""
        if state is None and start.START in params:
            begun = self.start(params, *tokens_BT.shape, ctx=ctx)
            if ctx.positions is not None:
                ctx = dataclasses.replace(ctx, positions=ctx.positions + start.length(params[start.START]))
            return self.hidden(params, tokens_BT, begun, ctx=ctx)._replace(state=None)
        return self._run(params, take(params["embed"], tokens_BT, jnp.dtype(ctx.policy.compute)), state, ctx)

    def _run(self, params, x_BTD: jax.Array, state, ctx: Ctx) -> Out:
        """`hidden` from the rows of the embedding on."""
        if self.embed_scale is not None:
            scale = self.d_model**0.5 if self.embed_scale == "sqrt" else self.embed_scale
            x_BTD = x_BTD * jnp.asarray(scale, x_BTD.dtype)
        own = {}
        if self.learned_positions:
            row = None if state is None else jax.tree.map(lambda x: x[0], state["position"])
            tokens, row = ctx.tokens(x_BTD, row)
            x_BTD = x_BTD + take(params["positions"], tokens.position, x_BTD.dtype)
            own = {} if row is None else {"position": jax.tree.map(lambda x: x[None], row)}
        if self.embed_norm is not None:
            x_BTD = self.embed_norm.apply(params["embed_norm"], x_BTD)
        out = self.stack.apply(params, ctx.constrain(x_BTD, "batch", "time", None), state, ctx=ctx)
        after = None if state is None else out.state | own
        return out._replace(y=self.norm.apply(params["norm"], out.y), state=after)
