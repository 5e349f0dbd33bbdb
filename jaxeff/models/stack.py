"""Stages of repeated blocks: what stands between an embedding and a head. B batch, T time, D model.

A stage repeats a pattern of blocks. Its parameters are stacked over the repeats, `blocks/<i>/mixer/q` for the i-th block of
the patterns (counted through all stages), and the repeats are one `lax.scan`: compile time does not grow with depth.
Weights that are used at several depths stand apart, `tied/<name>/mixer/q`.

Values that a block shares live to the end of the pass when its stage has one repeat, else to the end of that repeat: so a scan
carries nothing but x.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import checkpoint_policies as policies

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.recompute import computed_again
from jaxeff.core.spec import at_depth, stack
from jaxeff.core.tree import match
from jaxeff.mixers.base import Ctx, Out
from jaxeff.mixers.registry import CHANNEL_MIXERS, MIXERS
from jaxeff.models.block import Block, as_block
from jaxeff.models.descent import descend
from jaxeff.ops.attention_block import KEPT


def _narrow(primitive, *shapes, **parameters) -> bool:
    """Of products with weights those whose rows are no wider than what they sum over: q, k, v and o, not an MLP's hidden."""
    if not policies.dots_with_no_batch_dims_saveable(primitive, *shapes, **parameters):
        return False
    dims, _ = parameters["dimension_numbers"]
    summed = [math.prod(shape.shape[i] for i in over) for shape, over in zip(shapes, dims, strict=True)]
    return summed[0] >= min(math.prod(shape.shape) // n for shape, n in zip(shapes, summed, strict=True))


# What softmax attention gives is small beside what it would take to compute it again.
_attention = policies.save_only_these_names(KEPT)
# What the backward pass finds kept of a repeat, from most to least: everything; products with weights, all of them or the narrow
# ones, and what attention gives; that alone; nothing but the repeat's input.
REMAT = {
    "none": None,
    "dots": policies.save_from_both_policies(_attention, policies.dots_with_no_batch_dims_saveable),
    "narrow": policies.save_from_both_policies(_attention, _narrow),
    "attention": _attention,
    "full": policies.nothing_saveable,
}
GIVEN = ("embedding",)  # what every pass shares from its start: the embedded tokens


@dataclasses.dataclass(frozen=True)
class Tied:
    """A block whose weights are the same wherever `name` stands in a pattern; its states are not (Zamba2)."""

    name: str
    block: Block | str

    def __post_init__(self):
        object.__setattr__(self, "block", as_block(self.block))


@dataclasses.dataclass(frozen=True)
class Stage:
    """`pattern`, applied `repeats` times in turn. An entry is a Block, a Tied, or a mixer's registry name, which becomes the Block
    of that mixer.

    Raises ValueError for an empty pattern and no repeats, UserError for an unknown name.
    """

    pattern: tuple[Block | Tied | str, ...]
    repeats: int = 1

    def __post_init__(self):
        if isinstance(self.pattern, str | Block | Tied):
            raise ValueError(f"Stage.pattern is a tuple of blocks: write Stage(({self.pattern!r},), {self.repeats})")
        if not self.pattern:
            raise ValueError("Stage.pattern is empty: a stage needs at least one block")
        whole = tuple(entry if isinstance(entry, Tied) else as_block(entry) for entry in self.pattern)
        object.__setattr__(self, "pattern", whole)
        if self.repeats < 1:
            raise ValueError(f"Stage.repeats must be at least 1, found {self.repeats}")


def stages(blocks: Sequence[Block]) -> tuple[Stage, ...]:
    """Layers, each its own Block, as the stages that have the fewest to compile: four of one kind and one of another, six times
    over, are one stage of five blocks. Raises ValueError for no blocks."""
    if not blocks:
        raise ValueError("stages: there is no block")
    n = len(blocks)
    best: list[tuple[int, tuple[Stage, ...]]] = [(0, ())] * (n + 1)
    for i in reversed(range(n)):
        choices = []
        for period in range(1, n - i + 1):
            repeats = 1
            while blocks[i + repeats * period : i + (repeats + 1) * period] == blocks[i : i + period]:
                repeats += 1
            cost, rest = best[i + repeats * period]
            choices.append((period + cost, len(rest), (Stage(tuple(blocks[i : i + period]), repeats), *rest)))
        cost, _, found = min(choices, key=lambda choice: choice[:2])
        best[i] = cost, found
    return best[0][1]


@dataclasses.dataclass(frozen=True)
class Place:
    """A block of the pattern of a stage: its number `i` through all stages, and the depth of its first repeat."""

    i: int
    block: Block
    tied: str | None
    depth: int
    step: int
    repeats: int


@dataclasses.dataclass(frozen=True)
class Stack:
    """Stages for a model of width `d_model`. remat: what the backward pass recomputes, a key of REMAT. scan False unrolls the
    repeats (same parameters).

    Raises ValueError for no stages, and UserError for unknown names, for one name tied to two blocks, and for a block that reads
    a shared value which no block before it writes.
    """

    stages: tuple[Stage, ...]
    d_model: int
    remat: str = "none"
    scan: bool = True

    def __post_init__(self):
        lookup(REMAT, self.remat, "remat policy")
        if not self.stages or not all(isinstance(stage, Stage) for stage in self.stages):
            raise ValueError(f"stages must be a tuple of at least one Stage, found {self.stages!r}")
        _check_tied(self.places)
        _check_shared(self)

    @functools.cached_property
    def places(self) -> tuple[tuple[Place, ...], ...]:
        """The blocks of each stage, made for this width."""
        found, i, depth = [], 0, 0
        for stage in self.stages:
            places = []
            for entry in stage.pattern:
                tied, entry = (entry.name, entry.block) if isinstance(entry, Tied) else (None, entry)
                block = entry.bind(self.d_model)
                places.append(Place(i, block, tied, depth + len(places), len(stage.pattern), stage.repeats))
                i += 1
            depth += len(stage.pattern) * stage.repeats
            found.append(tuple(places))
        return tuple(found)

    def __iter__(self) -> Iterator[Place]:
        return (place for places in self.places for place in places)

    @property
    def n_layers(self) -> int:
        """Number of blocks that an input passes, repeats counted."""
        return sum(place.repeats for place in self)

    @property
    def looped(self) -> tuple[str, ...]:
        """The numbers of the blocks that a loop over repeats applies: those whose weights a `Descent` updates."""
        return tuple(str(p.i) for p in self if self.scan and p.repeats > 1 and p.tied is None)

    def specs(self):
        """`blocks/<i>/...` with a leading layer axis and, where there are tied blocks, `tied/<name>/...` without."""
        blocks, tied, total = {}, {}, self.n_layers
        for place in self:
            specs = place.block.specs()
            if place.tied is None:
                blocks[str(place.i)] = stack(specs, place.repeats, place.depth, place.step, total)
            elif place.tied not in tied:
                tied[place.tied] = at_depth(specs, place.depth, total)
        return {"blocks": blocks} | ({"tied": tied} if tied else {})

    def init_state(self, batch: int, max_len: int, dtype):
        """Decode states for texts of at most `max_len` tokens by the blocks' numbers, stacked over the repeats."""

        def stacked(place: Place):
            state = place.block.init_state(batch, max_len, dtype)
            return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (place.repeats, *leaf.shape)), state)

        return {str(place.i): stacked(place) for place in self}

    def apply(self, params, x_BTD: jax.Array, state=None, *, ctx: Ctx = Ctx()) -> Out:
        """All stages in turn. aux by `blocks/<i>/...`, stacked over the repeats; a block's output that `ctx.taps` asks for is
        `blocks/<i>/output` [repeats, B, T, D]."""
        taps = match(ctx.taps, [f"blocks/{place.i}" for place in self], "tap")
        ctx = ctx.sharing({"embedding": x_BTD})
        new_state, aux = {}, {}
        for places in self.places:
            states = None if state is None else {str(place.i): state[str(place.i)] for place in places}
            out = self._run(places, params, x_BTD, states, ctx, taps)
            x_BTD, aux = out.y, aux | out.aux
            new_state |= out.state or {}
            ctx = ctx.sharing(out.shared)
        return Out(x_BTD, None if state is None else new_state, dict(ctx.shared), aux)

    def _run(self, places: tuple[Place, ...], params, x_BTD, states, ctx: Ctx, taps) -> Out:
        """One stage: a scan over its repeats, or the same unrolled."""
        repeats = places[0].repeats
        layers = {str(p.i): params["blocks"][str(p.i)] for p in places if p.tied is None}
        repeat_R = None if ctx.key is None else jnp.arange(repeats)
        scanned = self.scan and repeats > 1

        def body(outer, x_BTD, layer):
            (ctx, tied), (layer_params, state, repeat) = outer, layer
            new, shared, aux = {}, {}, {}
            for p in places:
                name, path = str(p.i), f"blocks/{p.i}"
                own = layer_params[name] if p.tied is None else tied[p.tied]
                here = ctx.sharing(shared)
                here = here if repeat is None else here.fold(p.depth + p.step * repeat)
                out = p.block.apply(own, x_BTD, None if state is None else state[name], ctx=here)
                x_BTD, new[name] = ctx.constrain(out.y, "batch", "time", None), out.state
                shared |= out.shared
                aux |= {f"{path}/{key}": value for key, value in out.aux.items()}
                aux |= {f"{path}/output": x_BTD} if path in taps else {}
            return x_BTD, (None if state is None else new, shared if repeats == 1 else {}, aux)

        outer = dataclasses.replace(ctx, descent=None), params.get("tied")
        if scanned and ctx.descent is not None:
            return _descended(body, ctx.descent, outer, x_BTD, layers, repeats)
        body = functools.partial(body, outer)
        if self.remat != "none":
            # Under a scan the compiler cannot merge the recomputation with the forward pass anyway.
            body = jax.checkpoint(_within(body), policy=REMAT[self.remat], prevent_cse=not scanned)
        if scanned:
            x_BTD, (states, _, aux) = jax.lax.scan(body, x_BTD, (layers, states, repeat_R), length=repeats)
            return Out(x_BTD, states, {}, aux)
        found = []
        for layer in _unstack((layers, states, repeat_R), repeats):
            x_BTD, (state, shared, aux) = body(x_BTD, layer)
            found.append((state, aux))
        states, aux = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
        return Out(x_BTD, states, shared, aux)


def _within(body):
    """`body`, for whose parts all of it is computed again."""

    def again(*arguments):
        with computed_again():
            return body(*arguments)

    return again


def _descended(body, descent, outer, x_BTD, layers, repeats: int) -> Out:
    """One stage whose weights are updated within the backward pass."""

    def one(outer, x_BTD, layer, i):
        x_BTD, (_, _, aux) = body(outer, x_BTD, (layer, None, i))
        return x_BTD, aux

    x_BTD, aux = descend(one, descent, outer, x_BTD, layers, repeats)
    return Out(x_BTD, None, {}, aux)


def losses(aux: dict[str, Any]) -> jax.Array:
    """The sum of all auxiliary losses of a pass, float32."""
    found = [jnp.sum(value.astype(jnp.float32)) for path, value in aux.items() if path.rpartition("/")[2] == "loss"]
    return sum(found, jnp.zeros((), jnp.float32))


def _unstack(tree, n: int) -> list[Any]:
    """The n layers of a stacked tree. `lax.split` transposes to one concatenation, indexing to n padded sums."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [[part[0] for part in _split(leaf, n)] for leaf in leaves]
    return [structure.unflatten(layer) for layer in zip(*parts, strict=True)] if leaves else [tree] * n


def _split(leaf: jax.Array, n: int):
    return [leaf] if n == 1 else jax.lax.split(leaf, (1,) * n)


def _check_tied(places) -> None:
    blocks: dict[str, Block] = {}
    for place in (place for stage in places for place in stage):
        if place.tied is not None and blocks.setdefault(place.tied, place.block) != place.block:
            raise UserError(f"Tied {place.tied!r} stands for two different blocks; give one of them another name")


def _check_shared(stack: Stack) -> None:
    """Every value that a block reads is written before it, where it lives long enough."""
    lasting, gone = set(GIVEN), {}
    for s, places in enumerate(stack.places):
        here = set(lasting)
        for place in places:
            for part in place.block.parts.values():
                for name in getattr(part, "reads", ()):
                    if name not in here:
                        raise UserError(_unread(name, type(part).__name__, s, gone))
                here |= set(getattr(part, "writes", ()))
        if places[0].repeats == 1:
            lasting = here
        else:
            gone |= dict.fromkeys(here - lasting, s)


def _unread(name: str, reader: str, stage: int, gone: dict[str, int]) -> str:
    problem = f"{reader} in stage {stage} reads the shared value {name!r}"
    if name in gone:
        return (
            f"{problem}, which stage {gone[name]} writes; but that stage is repeated, so the value ends with each repeat: "
            f"write it in a stage of one repeat"
        )
    able = sorted(key for key, make in (MIXERS | CHANNEL_MIXERS).items() if name in getattr(make(), "writes", ()))
    who = f"; {' and '.join(map(repr, able))} would write it" if able else "; no mixer of the registry writes it"
    return f"{problem}, which no block before it writes{who}"
