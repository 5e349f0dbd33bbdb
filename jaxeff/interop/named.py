"""A decode state as nested dicts of arrays, which other frameworks keep, count and save like their own."""

from typing import Any

from flax.traverse_util import unflatten_dict

from jaxeff.core.tree import map_with_path, paths


def named(tree) -> dict[str, Any]:
    """The leaves of any tree as nested dicts, named by their paths; empty for a tree without leaves."""
    return unflatten_dict(paths(tree), sep="/")


def unnamed(names: dict[str, Any], like):
    """The tree of the structure of `like` whose leaves `named` wrote to `names`. Raises KeyError where one is not there."""
    leaves = paths(names)
    return map_with_path(lambda path, _: leaves[path], like)
