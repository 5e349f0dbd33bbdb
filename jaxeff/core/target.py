"""The platform that a program is for. Every choice of an implementation asks here, never the machine it is made on.

By default that is the default backend. A program lowered for another machine is traced anew under `lowering_for`: the target is
part of jit's cache key.
"""

import contextlib
from collections.abc import Iterator

import jax

from jaxeff.core.errors import nearest

PLATFORMS = ("cpu", "gpu", "tpu", "any")  # any: plain forms alone, which run wherever they are put
_TARGET = jax.make_user_context(default_value=None)


def platform() -> str:
    """ "cpu", "gpu", "tpu" or "any"."""
    return _TARGET.value or jax.default_backend()


@contextlib.contextmanager
def lowering_for(name: str) -> Iterator[None]:
    """Programs traced inside are for platform `name`. Raises ValueError for an unknown one."""
    if name not in PLATFORMS:
        raise ValueError(f"no platform is called {name!r}; {nearest(name, PLATFORMS)}")
    with _TARGET(name):
        yield
