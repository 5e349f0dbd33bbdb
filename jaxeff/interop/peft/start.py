"""Prompt and prefix tuning: what PEFT keeps in one tensor, and ours in the learned start."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.core.tree import paths
from jaxeff.interop.peft.modules import AdapterFields
from jaxeff.mixers.start import START
from jaxeff.models.lm import LM
from jaxeff.transforms import PrefixTuning, PromptTuning
from jaxeff.transforms.tuning import PROMPT, STATE

LEARNED = "prompt_embeddings"
STARTS: dict[str, type] = {"PROMPT_TUNING": PromptTuning, "PREFIX_TUNING": PrefixTuning}
# How a prompt is begun, and by what a prefix is made while it trains.
HARMLESS = frozenset(
    {
        "encoder_hidden_size", "prefix_projection", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }
)  # fmt: skip


def read(kind: str, fields: AdapterFields, model: LM) -> Any:
    """The transform of a configuration. Raises UserError for sizes that are not the model's."""
    for name, value in sizes(kind, model).items():
        fields.only(name, value) if value is not None else fields.any(name)
    length = fields("num_virtual_tokens", int)
    return PromptTuning(length) if kind == "PROMPT_TUNING" else PrefixTuning(slots=length)


def write(transform: Any, model: LM) -> dict[str, Any]:
    """The fields that `read` reads."""
    kind = next(name for name, ours in STARTS.items() if type(transform) is ours)
    if kind == "PREFIX_TUNING" and transform.rules != PrefixTuning().rules:
        raise UserError(f"PrefixTuning(rules={transform.rules!r}): a prefix of PEFT is in every layer")
    length = transform.length if kind == "PROMPT_TUNING" else transform.slots
    own = sizes(kind, model)
    if own["num_attention_heads"] is None:  # which PEFT asks for even where there is no attention
        own["num_attention_heads"] = getattr(next(iter(model.stack)).block.mixer, "heads", 1)
    return {"peft_type": kind, "num_virtual_tokens": length} | own


def sizes(kind: str, model: LM) -> dict[str, int | None]:
    """Fields that the model tells; None for any value."""
    if kind == "PROMPT_TUNING":
        token = {"token_dim": model.d_model, "num_attention_heads": None}
    else:
        heads, width = _cached(model)
        token = {"token_dim": heads * width, "num_attention_heads": heads}
    return {"num_layers": model.n_layers, "num_transformer_submodules": 1} | token


def _cached(model: LM) -> tuple[int, int]:
    """(heads, channels) of keys and values. Raises UserError where layers have none, or differ."""
    found = {
        (getattr(place.block.mixer, "kv_heads", None), getattr(place.block.mixer, "head", None))
        for place in model.stack
    }
    if len(found) > 1 or None in next(iter(found)):
        raise UserError("a prefix of PEFT has keys and values of one size in every layer, which this model has not")
    return found.pop()


def learned(transform: Any, tensor: np.ndarray, model: LM, place: str) -> dict[str, Any]:
    """The start of PEFT's tensor. Raises UserError for another shape."""
    shape = _shape(transform, model)
    if tensor.shape != shape:
        raise UserError(
            f"{place}: {LEARNED} has the shape {list(tensor.shape)}; its configuration makes it {list(shape)}"
        )
    if isinstance(transform, PromptTuning):
        return {PROMPT: np.array(tensor)}
    whole = tensor.reshape(len(tensor), model.n_layers, 2, *_cached(model))
    return {STATE: {path: np.stack([whole[:, i, part] for i in depths]) for path, part, depths in _places(model)}}


def tensor(transform: Any, start: Mapping[str, Any], model: LM) -> np.ndarray:
    """PEFT's tensor of a start."""
    if isinstance(transform, PromptTuning):
        return np.asarray(start[PROMPT])
    values = paths(start[STATE])
    first = np.asarray(next(iter(values.values())))
    whole = np.empty((first.shape[1], model.n_layers, 2, *first.shape[2:]), first.dtype)
    for path, part, depths in _places(model):
        for i, value in zip(depths, np.asarray(values[path]), strict=True):
            whole[:, i, part] = value
    return whole.reshape(_shape(transform, model))


def _shape(transform: Any, model: LM) -> tuple[int, int]:
    if isinstance(transform, PromptTuning):
        return transform.length, model.d_model
    heads, width = _cached(model)
    return transform.slots, model.n_layers * 2 * heads * width


def _places(model: LM) -> list[tuple[str, int, Sequence[int]]]:
    """(path, 0 for keys and 1 for values, layers) of each cache."""
    return [
        (f"{place.i}/mixer/values/{name}", part, [place.depth + place.step * i for i in range(place.repeats)])
        for place in model.stack
        for part, name in enumerate("kv")
    ]


def lifted(params: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with a start."""
    return {**params, START: {**params.get(START, {}), **start}}
