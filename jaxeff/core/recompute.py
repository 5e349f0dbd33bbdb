"""What the backward pass computes again in place of keeping it.

A mixer knows which of its intermediates are dear to keep and cheap to find: it wraps them in `checkpoint`. A stack may decide to
compute whole layers again. Then the mixer's own decision is moot: its part would be computed once more for nothing, once with the
layer and once by itself.
"""

import contextlib
from collections.abc import Callable, Iterator

import jax

_WITHIN = jax.make_user_context(default_value=False)


def checkpoint(f: Callable) -> Callable:
    """`jax.checkpoint(f)`; f itself where all around it is computed again."""
    return f if _WITHIN.value else jax.checkpoint(f)


@contextlib.contextmanager
def computed_again() -> Iterator[None]:
    """What is traced inside is part of something that is computed again."""
    with _WITHIN(True):
        yield
