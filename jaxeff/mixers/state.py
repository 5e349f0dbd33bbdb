"""Whether a decode state belongs to a mixer and a batch."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.core.tree import paths


def check_state(mixer, state, x_BTD: jax.Array) -> None:
    """Raises ValueError where `mixer.init_state` makes no such state for the batch of x: that of another mixer, width or batch."""
    if state is None:
        return
    expected, found = _expected(mixer, x_BTD.shape[0]), _form(state)
    if found.structure != expected.structure or not all(map(_fits, found.shapes.values(), expected.shapes.values())):
        raise ValueError(
            f"{type(mixer).__name__} needs a state {expected} for a batch of {x_BTD.shape[0]}, found the state {found}"
        )


class _Form(NamedTuple):
    """What a state looks like. shapes: by path; None is a size that follows `max_len`."""

    structure: Any
    name: str
    shapes: Mapping[str, tuple[int | None, ...]]

    def __str__(self) -> str:
        shapes = (f"{path} [{', '.join('any' if n is None else str(n) for n in s)}]" for path, s in self.shapes.items())
        return f"{self.name}({', '.join(shapes)})"


def _form(state) -> _Form:
    shapes = {path: jnp.shape(leaf) for path, leaf in paths(state).items()}
    return _Form(jax.tree.structure(state), type(state).__name__, shapes)


def _fits(shape, expected) -> bool:
    return len(shape) == len(expected) and all(m is None or n == m for n, m in zip(shape, expected, strict=True))


@functools.lru_cache(maxsize=512)
def _expected(mixer, batch: int) -> _Form:
    """Sizes that differ between a `max_len` of 1 and of 2 follow it."""
    one, two = (_form(jax.eval_shape(lambda n=n: mixer.init_state(batch, n, jnp.float32))) for n in (1, 2))
    sizes = {path: zip(shape, two.shapes[path], strict=True) for path, shape in one.shapes.items()}
    return one._replace(shapes={path: tuple(n if n == m else None for n, m in both) for path, both in sizes.items()})
