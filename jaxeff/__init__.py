"""jaxeff: efficient language-model architectures and efficient adaptation, as pure functions over parameter trees.

The names here are the ones an importing project needs first; everything else is imported from its own module.
"""

from jaxeff.core.sharding import make_mesh, shardings
from jaxeff.core.spec import Spec, abstract, count, init, stack
from jaxeff.core.weight import Weight

__version__ = "0.1.0"
__all__ = ["Spec", "Weight", "abstract", "count", "init", "make_mesh", "shardings", "stack"]
