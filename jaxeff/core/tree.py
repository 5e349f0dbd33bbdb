"""Parameter trees addressed by `/`-joined paths, and rules over those paths."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxeff.core.errors import UserError, nearest


def _name(entry) -> str:
    for field in ("key", "name", "idx"):
        if hasattr(entry, field):
            return str(getattr(entry, field))
    raise TypeError(f"unknown kind of tree path entry: {entry!r}")


def join(path) -> str:
    """A JAX key path as text: `blocks/0/mixer/q`."""
    return "/".join(map(_name, path))


def paths(tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """path -> leaf, in the tree's own order."""
    return {join(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf)}


def map_with_path(f: Callable[..., Any], tree, *rest, is_leaf: Callable[[Any], bool] | None = None):
    """`jax.tree.map` with the leaf's path as first argument."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: f(join(path), *leaves), tree, *rest, is_leaf=is_leaf)


def match(rules: Sequence[tuple[str, Any] | str], names: Iterable[str], what: str = "rule") -> dict[str, Any]:
    """name -> setting of the first rule whose regular expression matches the whole name; names without one are left out.

    A rule is (regex, setting), or a bare regex, whose setting is None. what: how an error calls a rule.
    Raises UserError for a rule that is no regular expression, and for one that matches no name, or only such as earlier rules
    took, with the nearest names.
    """
    names = list(names)
    found: dict[str, Any] = {}
    for rule in rules:
        pattern, setting = (rule, None) if isinstance(rule, str) else rule
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise UserError(f"{what} {pattern!r} is not a regular expression: {error}") from None
        hits = [name for name in names if regex.fullmatch(name)]
        if not hits:
            raise UserError(f"{what} {pattern!r} matches no path; {nearest(pattern, names)}")
        new = [name for name in hits if name not in found]
        if not new:
            raise UserError(
                f"{what} {pattern!r} matches only what rules before it took, such as {hits[0]!r}: put it first"
            )
        found |= dict.fromkeys(new, setting)
    return found


def partition(tree, keep: Callable[[str, Any], bool]):
    """Two trees of the same structure, (kept, rest), each with None where the other has the leaf.

    Differentiate the kept one only: gradients and optimizer state then exist for nothing else.
    """
    kept = map_with_path(lambda path, leaf: leaf if keep(path, leaf) else None, tree)
    rest = map_with_path(lambda path, leaf: None if keep(path, leaf) else leaf, tree)
    return kept, rest


def combine(kept, rest):
    """The inverse of `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, kept, rest, is_leaf=lambda leaf: leaf is None)
