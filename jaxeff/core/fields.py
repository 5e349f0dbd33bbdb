"""Whether a value is what an annotation says: for everything that comes from outside, before anything is computed with it."""

import collections.abc
import dataclasses
import functools
import math
import types
import typing
from typing import Any, Literal, Union

from jaxeff.core.errors import UserError, nearest


def check(value, prefix: str = "") -> None:
    """Checks each field of a dataclass against its annotation, and the fields of those that are dataclasses themselves.

    prefix: the path of `value`, before those of its fields.

    Raises UserError that names the field, what was expected and what was found.
    """
    for field in dataclasses.fields(value):
        found, path = getattr(value, field.name), f"{prefix}.{field.name}" if prefix else field.name
        kind = _annotations(type(value)).get(field.name, Any)
        if (wanted := mismatch(found, kind)) is not None:
            raise UserError(f"{path}: expected {wanted}, found {_shown(found)}{_hint(found, kind)}")
        _inside(found, path)


def _inside(value, path: str) -> None:
    if dataclasses.is_dataclass(value):
        check(value, path)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            _inside(item, f"{path}.{i}")


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def mismatch(value, kind) -> str | None:
    """What an annotation wants instead of a value, in words; None where the value is of its kind. Contracts (protocols) want an
    instance of any class, what such an instance must have is not looked at."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return None
    if origin in (Union, types.UnionType):
        wanted = [mismatch(value, option) for option in args]
        return None if None in wanted else " or ".join(dict.fromkeys(wanted))
    if origin is Literal:
        return None if value in args and type(value) in map(type, args) else f"one of {', '.join(map(repr, args))}"
    if kind in (None, type(None)):
        return None if value is None else "None"
    if kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if fits and math.isfinite(value) else "a finite number"
    if kind in _PLAIN:
        return None if type(value) is kind else _PLAIN[kind]
    if origin is tuple:
        return _of_tuple(value, args)
    if origin in (collections.abc.Mapping, dict):
        return None if isinstance(value, collections.abc.Mapping) else "a mapping"
    if origin is collections.abc.Callable or kind is collections.abc.Callable:
        return None if callable(value) else "a function"
    if getattr(kind, "_is_protocol", False):
        name = kind.__name__
        return (
            None if not isinstance(value, (type, str, int, float, tuple, list, dict, types.NoneType)) else f"{a(name)}"
        )
    cls = origin or kind
    return None if not isinstance(cls, type) or isinstance(value, cls) else a(cls.__name__)


_PLAIN = {int: "an integer", bool: "True or False", str: "a string", dict: "an object", list: "a list"}


def _of_tuple(value, kinds: tuple) -> str | None:
    if not isinstance(value, tuple):
        return "a tuple"
    if kinds[1:] == (Ellipsis,):
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        return f"a tuple of {len(kinds)}"
    wanted = [wish for wish in map(mismatch, value, kinds) if wish is not None]
    return f"a tuple, each item {wanted[0]}" if wanted else None


def a(name: str) -> str:
    """A name with its article; that of capitals alone is as they are spelled."""
    return f"{'an' if name[0] in ('AEFHILMNORSX' if name.isupper() else 'AEIOU') else 'a'} {name}"


def _shown(value) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _hint(value, kind) -> str:
    """What was probably meant."""
    if isinstance(value, type):
        return f": write {value.__name__}(...)"
    if isinstance(value, list):
        return ": write (a, b) or (a,) in place of [a, b] or [a]"
    names = [
        name for option in (kind, *typing.get_args(kind)) for name in typing.get_args(option) if isinstance(name, str)
    ]
    return f"; {nearest(value, names)}" if isinstance(value, str) and names else ""
