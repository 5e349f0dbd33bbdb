"""What there is to know of a family of public checkpoints: a value for each `model_type`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.tensors import Placed, Tensor, placed, sides
from jaxeff.models.block import Block
from jaxeff.models.lm import LM


@dataclasses.dataclass(frozen=True)
class Family:
    """A `model_type`, and the class that Transformers has for it, `architecture`.

    read(fields): the model of a configuration. write(model): fields that `read` reads as a model that computes the same, for any
    model of this kind; for others whatever comes, or LookupError, as who saves reads it again and compares. top, block(block): the
    tensors outside of layers, and of one layer, whose names begin with `layer`. prefix: what names lack in files of a model without
    its head. ignored: a regular expression for tensors that hold no weights (masks, frequencies). harmless: fields of its own that
    change no logits.
    """

    model_type: str
    architecture: str
    layer: str
    read: Callable[[Fields], LM]
    write: Callable[[LM], Mapping[str, Any]]
    top: Sequence[Tensor]
    block: Callable[[Block], Sequence[Tensor]]
    prefix: str = "model."
    ignored: str = r".*rotary_emb\.inv_freq"
    harmless: frozenset[str] = frozenset()

    def tensors(self, model: LM) -> list[Placed]:
        """Those of a model. Raises LookupError where they do not hold all of its weights."""
        return placed(model, self.top, self.layer, self.block)


def linear(name: str, path: str, pattern: str) -> tuple[Tensor, Tensor]:
    """A linear layer of torch, [outputs, inputs], and its bias. pattern: "(h c) d -> d h c", a bracket where an axis of theirs is
    several of ours."""
    outputs = sides(pattern)[0][0]
    bias = f"{outputs} -> {outputs.strip('()')}"
    return Tensor(f"{name}.weight", {path: pattern}), Tensor(f"{name}.bias", {f"{path}_bias": bias})


def norm(name: str, path: str) -> tuple[Tensor, Tensor]:
    """A norm's scale, and its bias if it has one."""
    return Tensor(f"{name}.weight", {f"{path}/scale": "d -> d"}), Tensor(f"{name}.bias", {f"{path}/bias": "d -> d"})


def embedding(name: str = "model.embed_tokens", head: str = "lm_head") -> tuple[Tensor, ...]:
    """The embedding and, where it is one of its own, the head."""
    return Tensor(f"{name}.weight", {"embed": "v d -> v d"}), Tensor(f"{head}.weight", {"head": "v d -> d v"})


ATTENTION = (
    *linear("self_attn.q_proj", "mixer/q", "(h c) d -> d h c"),
    *linear("self_attn.k_proj", "mixer/k", "(h c) d -> d h c"),
    *linear("self_attn.v_proj", "mixer/v", "(h c) d -> d h c"),
    *linear("self_attn.o_proj", "mixer/o", "d (h c) -> h c d"),
)
GATED_MLP = tuple(
    tensor for name in ("gate", "up", "down") for tensor in linear(f"mlp.{name}_proj", f"mlp/{name}", "o i -> i o")
)


def layers(model: LM) -> list[Block]:
    """Every layer's block, made for the model's width, in order."""
    found: dict[int, Block] = {}
    for place in model.stack:
        for repeat in range(place.repeats):
            found[place.depth + place.step * repeat] = place.block
    return [found[i] for i in range(len(found))]


def one(values, what: str):
    """What all layers agree on. Raises LookupError where they differ, or there is none."""
    distinct = list(dict.fromkeys(values))
    if not distinct:
        raise LookupError(f"no layer has {what}")
    if len(distinct) != 1:
        raise LookupError(f"layers differ in {what}: {', '.join(map(repr, distinct))}")
    return distinct[0]
