"""A decode state: the one that texts begin with, and any as nested dicts of arrays, which other frameworks keep and save."""

from typing import Any

from flax.traverse_util import unflatten_dict

from jaxeff.core.tree import map_with_path, paths
from jaxeff.mixers.base import Ctx
from jaxeff.models import LM


def named(tree) -> dict[str, Any]:
    """The leaves of any tree as nested dicts, named by their paths; empty for a tree without leaves."""
    return unflatten_dict(paths(tree), sep="/")


def unnamed(names: dict[str, Any], like):
    """The tree of the structure of `like` whose leaves `named` wrote to `names`. Raises KeyError where one is not there."""
    leaves = paths(names)
    return map_with_path(lambda path, _: leaves[path], like)


def begun(part, params, batch: int, max_len: int, dtype, ctx: Ctx = Ctx()):
    """The state that texts of at most `max_len` tokens begin with: an empty one, or what a model has learned."""
    if isinstance(part, LM):
        return part.start(params, batch, max_len, ctx=ctx)
    return part.init_state(batch, max_len, dtype)
