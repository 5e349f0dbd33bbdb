"""A language model: embedding, segments of repeated blocks, norm, head. B batch, T time, D model, V vocabulary.

A segment repeats a pattern of blocks. Its parameters are stacked over the repeats, `blocks/<i>/mixer/q` for the i-th block of
the pattern (counted through all segments), and the repeats are one `lax.scan`: compile time does not grow with depth.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxeff.core.errors import lookup
from jaxeff.core.spec import Normal, Spec, fan_in, stack
from jaxeff.core.weight import dense, take
from jaxeff.mixers.base import Ctx
from jaxeff.mixers.registry import MIXERS
from jaxeff.models.block import Block, NormKind, norm, norm_specs

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Segment:
    """`pattern`, applied `repeats` times in turn. An entry is a Block, or a mixer's registry name for a Block of it."""

    pattern: tuple[Block | str, ...]
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class LM:
    """A causal language model.

    pattern, repeats: the first segment; more: further ones. tied: the head is the embedding. embed_scale: a factor, or "sqrt"
    for sqrt(D). softcap: c tanh(logits / c). remat: what the backward pass recomputes, a key of REMAT. scan False unrolls the
    layers (same parameters). max_positions: the longest text the model may see, None for no bound.

    Raises ValueError for impossible sizes and unknown names.
    """

    vocab_size: int
    d_model: int = 256
    pattern: tuple[Block | str, ...] = ("gqa",)
    repeats: int = 4
    more: tuple[Segment, ...] = ()
    tied: bool = True
    embed_scale: float | Literal["sqrt"] | None = None
    softcap: float | None = None
    norm: NormKind = "rms"
    remat: Literal["none", "full", "dots"] = "none"
    scan: bool = True
    max_positions: int | None = None

    def __post_init__(self):
        lookup(REMAT, self.remat, "remat policy")
        for name in ("vocab_size", "d_model", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"LM.{name} must be at least 1, found {getattr(self, name)}")
        if self.norm not in ("rms", "layer"):
            raise ValueError(f"LM.norm must be 'rms' or 'layer', found {self.norm!r}")
        self.specs()

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """All segments, their blocks made for this model's width."""

        def block(entry):
            entry = Block(lookup(MIXERS, entry, "mixer")()) if isinstance(entry, str) else entry
            return entry.bind(self.d_model)

        given = (Segment(self.pattern, self.repeats), *self.more)
        return tuple(Segment(tuple(map(block, segment.pattern)), segment.repeats) for segment in given)

    @property
    def n_layers(self) -> int:
        """Number of blocks, repeats counted."""
        return sum(len(segment.pattern) * segment.repeats for segment in self.segments)

    def specs(self):
        """`embed`, `blocks/<i>/...` with a leading layer axis, `norm/scale`, and `head` where untied."""
        blocks, depth = [], 0
        for segment in self.segments:
            step = len(segment.pattern)
            blocks += [
                stack(block.specs(), segment.repeats, depth + i, step, self.n_layers)
                for i, block in enumerate(segment.pattern)
            ]
            depth += step * segment.repeats
        specs = {
            "embed": Spec((self.vocab_size, self.d_model), ("vocab", "embed"), Normal(0.02)),
            "blocks": {str(i): block for i, block in enumerate(blocks)},
            "norm": norm_specs(self.norm, self.d_model),
        }
        if not self.tied:
            specs["head"] = Spec((self.d_model, self.vocab_size), ("embed", "vocab"), fan_in)
        return specs

    def init_state(self, batch: int, max_len: int, dtype=jnp.float32):
        """Decode states for texts of at most `max_len` tokens, stacked like the parameters."""

        def stacked(block, repeats):
            state = block.init_state(batch, max_len, dtype)
            return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (repeats, *leaf.shape)), state)

        blocks = [stacked(block, segment.repeats) for segment in self.segments for block in segment.pattern]
        return {str(i): state for i, state in enumerate(blocks)}

    def apply(self, params, tokens_BT: jax.Array, state=None, ctx: Ctx = Ctx()):
        """(logits_BTV in float32, state)."""
        x_BTD, state = self.hidden(params, tokens_BT, state, ctx)
        return self.logits(params, x_BTD), state

    def logits(self, params, x_BTD: jax.Array) -> jax.Array:
        """float32 logits of final hidden states."""
        logits_BTV = jnp.einsum(
            "btd,vd->btv", x_BTD, self.head(params, x_BTD.dtype), preferred_element_type=jnp.float32
        )
        return logits_BTV if self.softcap is None else self.softcap * jnp.tanh(logits_BTV / self.softcap)

    def head(self, params, dtype) -> jax.Array:
        """The output matrix [V, D]."""
        return dense(params["embed"], dtype) if self.tied else dense(params["head"], dtype).T

    def hidden(self, params, tokens_BT: jax.Array, state=None, ctx: Ctx = Ctx()):
        """(x_BTD after the final norm in the compute dtype, state): what the head, or a loss that never forms logits, reads."""
        x_BTD = take(params["embed"], tokens_BT, jnp.dtype(ctx.policy.compute))
        if self.embed_scale is not None:
            scale = self.d_model**0.5 if self.embed_scale == "sqrt" else self.embed_scale
            x_BTD = x_BTD * jnp.asarray(scale, x_BTD.dtype)
        x_BTD = ctx.constrain(x_BTD, "batch", "time", None)
        new_state, first = {}, 0
        for segment in self.segments:
            names = [str(first + i) for i in range(len(segment.pattern))]
            first += len(names)
            layers = {name: params["blocks"][name] for name in names}
            states = None if state is None else {name: state[name] for name in names}
            x_BTD, states = self._run(
                dict(zip(names, segment.pattern, strict=True)), segment.repeats, layers, states, x_BTD, ctx
            )
            new_state |= states or {}
        return norm(self.norm, params["norm"], x_BTD), None if state is None else new_state

    def _run(self, blocks: dict[str, Block], repeats: int, layers, states, x_BTD, ctx: Ctx):
        """One segment: a scan over its repeats, or the same unrolled."""

        def body(x_BTD, layer):
            params, state = layer
            new = {}
            for name, block in blocks.items():
                x_BTD, new[name] = block.apply(params[name], x_BTD, None if state is None else state[name], ctx=ctx)
                x_BTD = ctx.constrain(x_BTD, "batch", "time", None)
            return x_BTD, None if state is None else new

        if self.remat != "none":
            # Under a scan the compiler cannot merge the recomputation with the forward pass anyway.
            body = jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=not self.scan)
        if self.scan and repeats > 1:
            return jax.lax.scan(body, x_BTD, (layers, states))
        new_states = []
        for layer in _unstack((layers, states), repeats):
            x_BTD, new = body(x_BTD, layer)
            new_states.append(new)
        return x_BTD, None if states is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *new_states)


def _unstack(tree, n: int) -> list[Any]:
    """The n layers of a stacked tree. `lax.split` transposes to one concatenation, indexing to n padded sums."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [[part[0] for part in jax.lax.split(leaf, (1,) * n)] for leaf in leaves]
    return [structure.unflatten(layer) for layer in zip(*parts, strict=True)]
