"""`--set a.b.0.c=value`: the one way to change a config from outside its file, typed by the annotations.

int, float, bool, str, Literal, None for optional fields, tuples (`a,b` or `[1, 2]`; items by index), nested dataclasses, a
dataclass of a union by its name (`data.source=grammar`), and mixers by registry name (`model.pattern.0.mixer=linear`).

All overrides of one call are applied together, so that their order does not matter and only the final values must fit
each other.
"""

import ast
import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, Union

from jaxeff.core.errors import UserError, lookup, nearest
from jaxeff.mixers.registry import CHANNEL_MIXERS, MIXERS
from jaxeff.models.block import Block, as_block
from jaxeff.train.vocabulary import agreeing
from jaxeff.transforms.plan import Transform
from jaxeff.transforms.registry import TRANSFORMS

# Fields that hold any class of a registry; their annotation cannot list them.
REGISTRIES = {(Block, "mixer"): MIXERS, (Block, "mlp"): CHANNEL_MIXERS}

# Annotations that are contracts; what fulfils them has a name.
KINDS = {Transform: TRANSFORMS}


@dataclasses.dataclass
class _Change:
    """What is to happen at one place of the tree: a new value, given as text or in a tuple of one, changes further down, or
    both in this order."""

    text: str | None = None
    value: tuple[Any, ...] = ()
    inner: dict[str, "_Change"] = dataclasses.field(default_factory=dict)


def override(experiment, assignments: Iterable[str]):
    """`experiment` with each `path=value` applied; a later assignment to the same path wins.

    A model that has as many tokens as its data goes on to, unless model.vocab_size is given; see `jaxeff.train.vocabulary`.

    Raises UserError for an unknown path (with the nearest names), a value of the wrong type, and values that do not fit
    each other.
    """
    root = _Change()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip()
        if not equals or not path:
            raise UserError(f"--set {assignment}: expected path=value, such as train.steps=100")
        change = root
        for name in path.split("."):
            change = change.inner.setdefault(name, _Change())
        change.text = text.strip()
    after = _apply(experiment, root, type(experiment), "", experiment)
    return after if "vocab_size" in root.inner.get("model", _Change()).inner else agreeing(experiment, after)


def replaced(experiment, changes: Iterable[tuple[str, Any]]):
    """`experiment` with the field at each path, as `--set` names it, set to a value; all together.

    Raises UserError for an unknown path, with the nearest, and for values that do not fit each other.
    """
    root = _Change()
    for path, value in changes:
        change = root
        for name in path.split("."):
            change = change.inner.setdefault(name, _Change())
        change.value = (value,)
    return _apply(experiment, root, type(experiment), "", experiment)


def transforms(text: str) -> tuple[Transform, ...]:
    """Those that a text names or calls: `LowRank(energy=0.9), Int8()`. Raises UserError for names and fields that are none."""
    try:
        return _parse_one(text, tuple[Transform, ...])
    except _Mistyped as mistyped:
        wanted, *names = mistyped.args
        raise UserError(f"{text}: expected {wanted}" + (f"; {nearest(text, names)}" if names else "")) from None
    except ValueError as error:
        raise UserError(f"{text}: {error}") from None


def _apply(old, change: _Change, kind, path: str, root, registry=None):
    if change.text is not None and registry is None and (cls := _named(change.text, kind)) is not None:
        value = _fresh(cls, change, path, root)
    else:
        value = old if change.text is None else _parse(change.text, kind, path, registry)
        value = change.value[0] if change.value else value
    if not change.inner:
        return value
    if isinstance(value, str) and Block in _options(kind):
        value = as_block(value)
    if isinstance(value, tuple):
        return _apply_items(value, change, kind, path, root)
    if not dataclasses.is_dataclass(value):
        raise UserError(f"--set {path}.{next(iter(change.inner))}: {path} is {value!r} and has no fields")
    hints, names = typing.get_type_hints(type(value)), [f.name for f in dataclasses.fields(value) if f.init]
    new = {}
    for name, inner in change.inner.items():
        here = f"{path}.{name}" if path else name
        if name not in names:
            raise UserError(
                f"--set {here}: {type(value).__name__} has no field {name!r}; {_suggest(name, names, root)}"
            )
        known = REGISTRIES.get((type(value), name))
        new[name] = _apply(getattr(value, name), inner, hints[name], here, root, known)
    try:
        return dataclasses.replace(value, **new)
    except ValueError as error:
        given = ", ".join(f"{path}.{name}".lstrip(".") for name in new)
        raise UserError(f"--set {given}: {error}") from None


def _fresh(cls: type, change: _Change, path: str, root):
    """A class with its defaults; a field without one must be set too."""
    needed = [
        f.name for f in dataclasses.fields(cls) if f.init and f.default is f.default_factory is dataclasses.MISSING
    ]
    hints = typing.get_type_hints(cls)
    for name in needed:
        if name not in change.inner:
            raise UserError(f"--set {path}={change.text}: {_snake(cls)} needs --set {path}.{name}=... as well")
    given = {name: _apply(None, change.inner[name], hints[name], f"{path}.{name}", root) for name in needed}
    try:
        return cls(**given)
    except ValueError as error:
        raise UserError(f"--set {path}={change.text}: {error}") from None


def _apply_items(value: tuple, change: _Change, kind, path: str, root):
    items = list(value)
    for name, inner in change.inner.items():
        if not name.isdecimal() or int(name) >= len(items):
            places = f"0..{len(items) - 1}" if items else "none, it is empty"
            raise UserError(f"--set {path}.{name}: {path} has {len(items)} items; indices: {places}")
        i = int(name)
        items[i] = _apply(items[i], inner, _item_kind(kind, i), f"{path}.{name}", root)
    return tuple(items)


def _suggest(name: str, names, root) -> str:
    # Perhaps it is the end of a path elsewhere.
    ends = [p for p in paths(root) if p.rpartition(".")[2] == name]
    return f"did you mean {' or '.join(map(repr, ends[:3]))}?" if ends else nearest(name, names)


def paths(value, prefix: str = "") -> list[str]:
    """All dotted paths that can be set in a config."""
    if isinstance(value, tuple):
        entries = [(str(i), item) for i, item in enumerate(value)]
    elif dataclasses.is_dataclass(value):
        entries = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
    else:
        return []
    found = []
    for name, item in entries:
        here = f"{prefix}.{name}" if prefix else name
        found += [here, *paths(item, here)]
    return found


def _options(kind) -> tuple:
    """The alternatives of an annotation."""
    return typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)


def _item_kind(kind, i: int):
    for option in _options(kind):
        if typing.get_origin(option) is tuple:
            args = typing.get_args(option)
            return args[0] if args[1:] == (Ellipsis,) else args[i]
    return Any


class _Mistyped(Exception):
    """A text that an annotation does not allow; the argument says what it does allow."""


def _parse(text: str, kind, path: str, registry=None):
    if registry is not None:
        if text.lower() == "none":
            return None
        try:
            return lookup(registry, text, "mixer")()
        except UserError as error:
            raise UserError(f"--set {path}={text}: {error}") from None
    wanted, names = [], []
    # None is one text only; strings, alone or in lists, accept everything, so they come last.
    for option in sorted(_options(kind), key=lambda option: (option is not type(None), option is str)):
        try:
            return _parse_one(text, option)
        except _Mistyped as mistyped:
            wanted.append(mistyped.args[0])
            names += mistyped.args[1:]
        except ValueError as error:  # of the right kind, and impossible
            raise UserError(f"--set {path}={text}: {error}") from None
    hint = f"; {nearest(text, names)}" if names else ""
    raise UserError(f"--set {path}={text}: expected {' or '.join(dict.fromkeys(wanted))}, found {text!r}{hint}")


def _parse_one(text: str, kind):
    origin = typing.get_origin(kind)
    if kind is Any or kind is str:
        return text
    if kind in (None, type(None)):
        return _choose(text, {"none": None, "null": None}, "none")
    if kind is bool:
        return _choose(text, {"true": True, "false": False, "1": True, "0": False}, "true or false")
    if kind is int:
        if not re.fullmatch(r"[+-]?\d[\d_]*", text):
            raise _Mistyped("an integer")
        return int(text)
    if kind is float:
        try:
            value = float(text)
        except ValueError:
            raise _Mistyped("a number") from None
        if not math.isfinite(value):
            raise _Mistyped("a finite number")
        return value
    if origin is Literal:
        choices = {str(choice): choice for choice in typing.get_args(kind)}
        if text not in choices:
            raise _Mistyped(f"one of {', '.join(choices)}", *choices)
        return choices[text]
    if origin is tuple:
        return _parse_tuple(text, typing.get_args(kind))
    if kind in KINDS:
        return _made(text, KINDS[kind])
    if dataclasses.is_dataclass(kind):
        if _named(text, kind) is None:
            raise _Mistyped(_snake(kind), _snake(kind))
        return _fresh(kind, _Change(text), "", None)
    raise _Mistyped(f"a {getattr(kind, '__name__', kind)}, which the command line cannot give")


def _made(text: str, registry: dict[str, type]):
    """What a text names, `lora` or `LoRA`, or calls with literal arguments by name: `LoRA(rank=8)`."""
    name, bracket, _ = text.partition("(")
    cls = next((cls for key, cls in registry.items() if _plain(name) in (_plain(key), _plain(cls.__name__))), None)
    if cls is None:
        raise _Mistyped(f"one of {', '.join(registry)}", *registry)
    try:
        call = ast.parse(text if bracket else f"{name}()", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
            raise ValueError
        given = {word.arg: _frozen(ast.literal_eval(word.value)) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise _Mistyped(f"{cls.__name__}(name=value, ...) with plain values") from None
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for word in given:
        if word not in names:
            raise ValueError(f"{cls.__name__} has no field {word!r}; {nearest(word, names)}")
    return cls(**given)


def _expressions(text: str) -> list[str]:
    """The items of a list of names and calls, with or without its brackets."""
    try:
        body = ast.parse(f"({text},)" if text.strip() else "()", mode="eval").body
    except SyntaxError:
        raise _Mistyped("a list such as [Int8(), LoRA(rank=8)]") from None
    items = body.elts
    if len(items) == 1 and isinstance(items[0], (ast.List, ast.Tuple)):
        items = items[0].elts
    return [ast.unparse(item) for item in items]


def _frozen(value):
    """Lists as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _choose(text: str, choices: dict, wanted: str):
    if text.lower() not in choices:
        raise _Mistyped(wanted)
    return choices[text.lower()]


def _parse_tuple(text: str, kinds: tuple):
    if kinds[0] in KINDS:
        parts = _expressions(text)
    elif text[:1] in ("(", "["):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise _Mistyped("a list such as [1, 2]") from None
        parts = [str(item) for item in (value if isinstance(value, (tuple, list)) else (value,))]
    else:
        parts = [part.strip() for part in text.split(",") if part.strip()]
    if kinds[1:] == (Ellipsis,):
        kinds = kinds[:1] * len(parts)
    if len(parts) != len(kinds):
        raise _Mistyped(f"a list of {len(kinds)} items")
    return tuple(_parse_item(part, kind) for part, kind in zip(parts, kinds, strict=True))


def _parse_item(text: str, kind):
    wanted, names = [], []
    # A mixer's name in a pattern stays a name: the model makes the block.
    for option in sorted(_options(kind), key=lambda option: option is str):
        try:
            return _parse_one(text, option)
        except _Mistyped as mistyped:
            wanted.append(mistyped.args[0])
            names += mistyped.args[1:]
    raise _Mistyped("a list of " + " or ".join(wanted), *names)


def _snake(cls: type) -> str:
    """PythonDocs -> python_docs."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


def _named(text: str, kind) -> type | None:
    """The dataclass among an annotation's alternatives that a text names, in any common spelling."""

    classes = [option for option in _options(kind) if dataclasses.is_dataclass(option)]
    return next((option for option in classes if _plain(option.__name__) == _plain(text)), None)


def _plain(name: str) -> str:
    """A name in any common spelling, as one."""
    return name.strip().replace("_", "").replace("-", "").lower()
