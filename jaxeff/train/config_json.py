"""A config as JSON data, as it lies beside the checkpoints, and back.

    to_json(e), from_json(d)     a tree of frozen dataclasses
    diff(a, b)                   the fields in which two of them differ

Reading back makes values of named types only: dataclasses of this package, and those that the program has imported itself. No
file of results can make it import or run anything.
"""

import dataclasses
import importlib
import math
import sys
from pathlib import Path
from typing import Any

from jaxeff.core.errors import UserError


def to_json(value) -> Any:
    """A config value as JSON data: a dataclass becomes a dict with its class under "type", a tuple a list."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"a config may hold finite numbers only, as JSON has no others; found {value}")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise UserError(f"a config may hold dataclasses, tuples, numbers, strings and None; found {value!r}")


def from_json(data) -> Any:
    """The inverse of `to_json`. Raises UserError when a class is not there any more or has other fields."""
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    cls = _class(data.get("type", ""))
    _check_own_fields(data)
    fields = {name: from_json(item) for name, item in data.items() if name != "type"}
    try:
        return cls(**fields)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"the stored config does not fit {data['type']}: {error}") from None


def check_fields(data) -> None:
    """Raises UserError when JSON data gives a class of this package a field that it does not have."""
    for item in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        check_fields(item)
    if isinstance(data, dict):
        _check_own_fields(data)


def _check_own_fields(data: dict) -> None:
    if str(data.get("type", "")).startswith("jaxeff."):
        known = {field.name for field in dataclasses.fields(_class(data["type"]))}
        for name in sorted(data.keys() - known - {"type"}):
            raise UserError(
                f"the stored config gives {data['type']} a field {name!r}, which it does not have: another version of jaxeff "
                "wrote it; use that version, or train again in another workdir"
            )


def _class(name: str) -> type:
    module, _, attribute = str(name).rpartition(".")
    try:
        if module.split(".")[0] == "jaxeff" and not module.endswith("__main__"):
            importlib.import_module(module)
        cls = getattr(sys.modules[module], attribute)
    except (ImportError, AttributeError, ValueError, KeyError):
        raise UserError(
            f"the stored config names {name!r}, which is not there; where a config file of yours defines it, name that file: "
            "--config FILE"
        ) from None
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"the stored config names {name!r}, which is no dataclass")
    return cls


def flatten(data, prefix: str = "") -> dict[str, Any]:
    """JSON data as dotted path -> leaf."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else None
    if items is None or not data:
        return {prefix: data}
    leaves = {}
    for key, item in items:
        leaves |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return leaves


MISSING = type("Missing", (), {"__repr__": lambda self: "(absent)"})()


def diff(a, b) -> list[tuple[str, Any, Any]]:
    """(path, value in a, value in b) for each field in which two experiments, or their JSON, differ."""
    left, right = (flatten(x if isinstance(x, dict) else to_json(x)) for x in (a, b))
    names = list(dict.fromkeys((*left, *right)))
    pairs = ((name, left.get(name, MISSING), right.get(name, MISSING)) for name in names)
    return [(name, x, y) for name, x, y in pairs if isinstance(x, bool) is not isinstance(y, bool) or x != y]
