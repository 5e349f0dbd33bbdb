"""jaxeff: efficient language-model architectures and efficient adaptation, as pure functions over parameter trees.

The names here are the ones an importing project needs first; everything else is imported from its own module.
"""

import importlib

from jaxeff.core import xla

xla.prepare()

__version__ = "0.1.0"
__all__ = ["Spec", "Weight", "abstract", "count", "init", "make_mesh", "shardings", "stack"]

# Looked up when first used: `jaxeff --help` does not wait for JAX.
_HOMES = {
    **dict.fromkeys(("make_mesh", "shardings"), "jaxeff.core.sharding"),
    **dict.fromkeys(("Spec", "abstract", "count", "init", "stack"), "jaxeff.core.spec"),
    "Weight": "jaxeff.core.weight",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxeff' has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
