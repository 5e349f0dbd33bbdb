"""jaxeff: efficient language-model architectures and efficient adaptation, as pure functions over parameter trees.

The names here are the ones an importing project needs first; everything else is imported from its own module.
"""

from jaxeff.core import xla

xla.prepare()

from jaxeff.core.sharding import make_mesh, shardings  # noqa: E402
from jaxeff.core.spec import Spec, abstract, count, init, stack  # noqa: E402
from jaxeff.core.weight import Weight  # noqa: E402

__version__ = "0.1.0"
__all__ = ["Spec", "Weight", "abstract", "count", "init", "make_mesh", "shardings", "stack"]
