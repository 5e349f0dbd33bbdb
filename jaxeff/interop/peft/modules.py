"""The linear layers of a public model that an adapter may stand beside: which a configuration chooses, and what to call them."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from jaxeff.core.errors import UserError, nearest
from jaxeff.core.tree import paths
from jaxeff.interop.hf.family import Family
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.tensors import Placed
from jaxeff.models.lm import LM

ALL = "all-linear"
# Whose weights Transformers hands to kernels past the layer, so that an adapter there counts on some machines alone, or on none.
PASSED = {"mamba": ("dt_proj", "out_proj"), "falcon_mamba": ("dt_proj", "out_proj"), "mamba2": ("out_proj",)}


@dataclasses.dataclass(frozen=True)
class Module:
    """A linear layer of theirs. weight: its matrix, which holds one or several of our weights; biased: whether it has a bias."""

    name: str
    weight: Placed
    biased: bool

    @property
    def paths(self) -> tuple[str, ...]:
        """Of our weights in it."""
        return tuple(self.weight.tensor.weights)


class AdapterFields(Fields):
    """The fields of an `adapter_config.json`."""

    def any(self, name: str) -> Any:
        """Whatever is there, None where it is absent."""
        return self(name, type(self._config.get(name)), None)

    def names(self, name: str) -> str | tuple[str, ...] | None:
        """A regular expression, or names. Raises UserError for anything else."""
        value = self.any(name)
        if isinstance(value, str) and value.lower() != ALL:
            self.compiled(value, name)
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.error(name, "must be a regular expression or a list of names")
        return tuple(value)

    def compiled(self, regex: str, name: str) -> re.Pattern[str]:
        """A regular expression in the field `name`. Raises UserError where it is none."""
        try:
            return re.compile(regex)
        except re.error as error:
            raise self.error(name, f"has {regex!r}, which is no regular expression ({error})") from None

    def numbers(self, name: str, kind: type) -> dict[str, Any]:
        """A pattern, regex -> number. Raises UserError for anything else."""
        found = self(name, dict, None) or {}
        if not all(type(value) in (int, kind) and value > 0 for value in found.values()):
            raise self.error(name, "must give each layer a number above 0")
        return found


def modules(family: Family, model: LM) -> tuple[dict[str, Module], list[str]]:
    """(name -> linear layer of the model's blocks, names of matrices outside of blocks)."""
    rows, own = family.tensors(model), paths(model.specs())
    names = {row.tensor.name for row in rows}
    found, outside = {}, []
    for row in rows:
        name, _, kind = row.tensor.name.rpartition(".")
        if kind != "weight" or len(row.shape(own)) != 2:
            continue
        if row.layer is None:
            outside.append(name)
        elif all(own[path].is_matrix for path in row.tensor.weights):
            found[name] = Module(name, row, f"{name}.bias" in names)
    return found, outside


def chosen(fields: AdapterFields, known: Mapping[str, Module], outside: Iterable[str], family: Family) -> list[str]:
    """The names that `target_modules` chooses, less what `exclude_modules` does.

    Raises UserError where these are none, are outside of blocks, or have no effect in Transformers.
    """
    targets, excluded = fields.names("target_modules"), fields.names("exclude_modules")
    if not targets:
        raise fields.error("target_modules", "must name layers")
    if isinstance(targets, str) and targets.lower() == ALL:
        targets, outside = tuple(known), ()
    layers = _layers(fields)
    found = [name for name in (*known, *outside) if matches(targets, name) and not matches(excluded or (), name)]
    found = [name for name in found if layers(name)]
    if not found:
        endings = {name.rpartition(".")[2] for name in known}
        first = targets if isinstance(targets, str) else targets[0]
        raise fields.error("target_modules", f"chooses no layer of this model; {nearest(first, endings)}")
    for name in found:
        if name not in known:
            raise fields.error("target_modules", f"chooses {name}: embeddings and heads are read without adapters")
    check_read(found, family, fields.place)
    return found


def check_read(names: Iterable[str], family: Family, place: str) -> None:
    """Raises UserError for a layer that Transformers reads past its adapter."""
    for name in names:
        if name.rpartition(".")[2] in PASSED.get(family.model_type, ()):
            raise UserError(
                f"{place}: Transformers reads the weight of {name} past an adapter, which has no effect there"
            )


def matches(targets: str | Collection[str], name: str) -> bool:
    """Whether a regular expression is the whole name, or one of several names is its end."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _layers(fields: AdapterFields):
    """Whether a name is of one of the layers that the configuration keeps to."""
    value = fields.any("layers_to_transform")
    patterns = fields.names("layers_pattern") or ("[^.]*",)
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    if value is None or value == []:
        return lambda name: True
    kept = value if isinstance(value, list) else [value]
    if not all(type(each) is int for each in kept):
        raise fields.error("layers_to_transform", "must be a number or a list of numbers")

    regexes = [fields.compiled(rf"(?:^|.*?\.){pattern}\.(\d+)\.", "layers_pattern") for pattern in patterns]

    def f(name: str) -> bool:
        found = (regex.match(name) for regex in regexes)
        number = next((match for match in found if match), None)
        return number is not None and int(number[1]) in kept

    return f


def by_path(known: Mapping[str, Module], settings: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Our path -> setting, from the settings of modules.

    Raises UserError where the layers that lie in one array of ours do not all have a setting, or have other ones.
    """
    found: dict[str, tuple[str, Any]] = {}
    for name, module in known.items():
        for path in module.paths:
            first, setting = found.setdefault(path, (name, settings.get(name)))
            if settings.get(name) != setting:
                says = f"{first} has {_said(setting)} and {name} has {_said(settings.get(name))}"
                raise UserError(f"{place}: {says}, but both lie in {path}, whose layers have one kind of adapter")
    return {path: setting for path, (_, setting) in found.items() if setting is not None}


def _said(setting: Any) -> str:
    return "no adapter" if setting is None else f"an adapter of {setting}"


def named(names: Collection[str], known: Iterable[str]) -> list[str]:
    """The shortest ends that choose these of the known names and no others."""
    known = list(known)
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        found[next(end for end in ends if all(each in names for each in known if matches((end,), each)))] = None
    return list(found)
