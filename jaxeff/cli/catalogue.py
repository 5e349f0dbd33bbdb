"""What there is by name, read from the registries themselves.

kinds()                how many there are of each kind
entries("mixers")      name -> one line about it
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxeff.core.errors import lookup


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of thing. place: where its names are used. read: name -> one line; imports what it needs when it is called."""

    place: str
    read: Callable[[], dict[str, str]]


def kinds() -> dict[str, tuple[int, str]]:
    """kind -> how many there are, and where their names are used."""
    return {name: (len(kind.read()), kind.place) for name, kind in KINDS.items()}


def entries(kind: str) -> dict[str, str]:
    """name -> one line about each thing of a kind. Raises UserError for an unknown kind, with the nearest."""
    return lookup(KINDS, kind, "kind").read()


def sentence(thing: Any) -> str:
    """The first sentence of a docstring on one line, without where sizes come from; empty where there is none."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    first = re.match(r".*?\.(?= |$)(?! \d)", text)
    return re.sub(r"; sizes .*", ".", text if first is None else first[0])


def _described(things: Mapping[str, Any]) -> dict[str, str]:
    return {name: sentence(thing) for name, thing in things.items()}


def _mixers() -> dict[str, str]:
    from jaxeff.mixers.registry import MIXERS

    return _described(MIXERS)


def _channel_mixers() -> dict[str, str]:
    from jaxeff.mixers.registry import CHANNEL_MIXERS

    return _described(CHANNEL_MIXERS)


def _optimizers() -> dict[str, str]:
    """Their customary settings; what they do where their builder says it."""
    from jaxeff.train.optim import OPTIMIZERS

    def one(name: str, build: Any, settings: Any) -> str:
        used = {
            key: value for key, value in settings._asdict().items() if value and (key != "rank" or name == "galore")
        }
        numbers = ", ".join(f"{key}={value:g}" for key, value in used.items())
        return "; ".join(filter(None, (numbers, sentence(build))))

    return {name: one(name, *found) for name, found in OPTIMIZERS.items()}


def _transforms() -> dict[str, str]:
    from jaxeff.transforms.registry import TRANSFORMS

    return _described(TRANSFORMS)


def _objectives() -> dict[str, str]:
    from jaxeff import objectives

    return _described(_public(objectives, ("sums", "loss", "scores")))


def _presets() -> dict[str, str]:
    from jaxeff.core.spec import count
    from jaxeff.models.presets import PRESETS

    models = {name: make() for name, make in PRESETS.items()}
    sizes = {name: f"{count(model.specs()):,}" for name, model in models.items()}
    width = max(map(len, sizes.values()))
    return {
        name: f"{sizes[name]:>{width}} parameters, {model.n_layers} layers of width {model.d_model}"
        for name, model in models.items()
    }


def _benchmarks() -> dict[str, str]:
    from jaxeff.bench.registry import BENCHMARKS

    return _described(BENCHMARKS)


def _data() -> dict[str, str]:
    from jaxeff import data

    return _described(_public(data, ("prepare",)))


def _public(room: Any, methods: Iterable[str]) -> dict[str, type]:
    """The public dataclasses of a room that fulfil a contract, by their names."""
    found = {name: getattr(room, name) for name in sorted(room.__all__)}
    return {
        name: cls
        for name, cls in found.items()
        if dataclasses.is_dataclass(cls) and all(hasattr(cls, method) for method in methods)
    }


def _parts_of_text(field: str) -> dict[str, str]:
    """What a field of TextData may be, other data apart."""
    import typing

    from jaxeff.data import TextData

    options = typing.get_args(typing.get_type_hints(TextData)[field])
    return _described({cls.__name__: cls for cls in options if not hasattr(cls, "prepare")})


KINDS: dict[str, Kind] = {
    "mixers": Kind("model.stages.0.pattern.0.mixer", _mixers),
    "channel-mixers": Kind("model.stages.0.pattern.0.mlp", _channel_mixers),
    "optimizers": Kind("optim.name", _optimizers),
    "transforms": Kind("transforms", _transforms),
    "objectives": Kind("objective", _objectives),
    "presets": Kind("jaxeff describe --model NAME", _presets),
    "benchmarks": Kind("jaxeff bench NAME", _benchmarks),
    "data": Kind("data", _data),
    "sources": Kind("data.source", lambda: _parts_of_text("source")),
    "tokenizers": Kind("data.tokenizer", lambda: _parts_of_text("tokenizer")),
}
