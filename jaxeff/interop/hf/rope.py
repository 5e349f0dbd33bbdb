"""The rotary embedding of a `config.json`, as Transformers 4 spells it (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`)."""

import dataclasses
from typing import Any

from jaxeff.core.errors import nearest
from jaxeff.interop.hf.fields import Fields
from jaxeff.ops.rope import Linear, Llama3, Rope, Yarn


def read_rope(fields: Fields, theta: float = 10000.0, fraction: float = 1.0) -> Rope:
    """theta, fraction: where the configuration does not tell. Raises UserError for kinds of scaling that are not known, and for
    fields of theirs that are not understood."""
    base = fields("rope_theta", float, theta)
    fraction = fields("partial_rotary_factor", float, fraction)
    name = next((name for name in ("rope_parameters", "rope_scaling") if name in fields), None)
    fields("rope_parameters", dict, None), fields("rope_scaling", dict, None)
    if name is None:
        return Rope(base, fraction)
    return parameters(fields.inner(name), base, fraction, fields("max_position_embeddings", int, None))


def parameters(inner: Fields, base: float, fraction: float, length: int | None) -> Rope:
    """What one object of parameters says. length: of the model's context, which some kinds of scaling start from."""
    base = inner("rope_theta", float, base)
    fraction = inner("partial_rotary_factor", float, fraction)
    kind = inner("rope_type", str, inner("type", str, "default"))
    if kind not in KINDS:
        raise inner.error("rope_type", f"is not known ({nearest(kind, KINDS)})")
    scaling = KINDS[kind](inner, length)
    inner.finish()
    return Rope(base, fraction, scaling)


def _linear(inner: Fields, length) -> Linear:
    return Linear(inner("factor", float))


def _llama3(inner: Fields, length) -> Llama3:
    factors = (inner(name, float) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    return Llama3(*factors, inner("original_max_position_embeddings", int))


def _yarn(inner: Fields, length) -> Yarn:
    for name in ("mscale", "mscale_all_dim"):
        inner.only(name)
    original = inner("original_max_position_embeddings", int, length)
    if original is None:
        raise inner.error("original_max_position_embeddings", "is missing")
    return Yarn(
        inner("factor", float), original, inner("beta_fast", float, 32.0), inner("beta_slow", float, 1.0),
        inner("attention_factor", float, None), inner("truncate", bool, True),
    )  # fmt: skip


KINDS = {"default": lambda inner, length: None, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
NAMES = {Linear: "linear", Llama3: "llama3", Yarn: "yarn"}


def write_rope(rope: Rope) -> dict[str, Any]:
    """Fields that `read_rope` reads as `rope`, in the spelling that Transformers 4 and 5 both read."""
    fields: dict[str, Any] = {"rope_theta": rope.base}
    if rope.fraction != 1:
        fields["partial_rotary_factor"] = rope.fraction
    if rope.scaling is not None:
        values = dataclasses.asdict(rope.scaling)
        if "original_max_position" in values:
            values["original_max_position_embeddings"] = values.pop("original_max_position")
        kept = {name: value for name, value in values.items() if value is not None}
        fields["rope_scaling"] = {"rope_type": NAMES[type(rope.scaling)], **kept}
    return fields
