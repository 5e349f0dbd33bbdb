"""What the weights are that transforms leave, and in which order they may stand on each other."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, init
from jaxeff.core.weight import Weight, is_weight

# From the weight outwards: what stands on what, and how an error says that a weight is so already.
STAGES = {
    "low rank": "is of low rank",
    "mask": "has a mask",
    "few bits": "is in few bits",
    "adapter": "has an adapter",
}


class Node(Weight):
    """A weight that a transform made; its fields are arrays or, in a plan, Specs.

    stage: a key of STAGES. parts: the fields that are weights in their own right, the first of them with the dimensions of the
    whole unless `ndim` and `spec` say otherwise.
    """

    stage: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = ("base",)

    @property
    def ndim(self) -> int:
        """Dimensions of the plain weight, stacked ones included."""
        return getattr(self, self.parts[0]).ndim

    def spec(self) -> Spec:
        """In a plan: the Spec of the plain weight."""
        return spec_of(getattr(self, self.parts[0]))

    @classmethod
    def maker(cls) -> str:
        """LoRA, of LoRAWeight."""
        return cls.__name__.removesuffix("Weight")


def spec_of(weight: Any) -> Spec:
    """The Spec of the plain weight that a node of Specs stands for; that of a plain weight is itself."""
    return weight.spec() if is_weight(weight) else weight


def nodes_of(weight: Any) -> Iterator[Node]:
    """A node and all nodes inside it, from the outside; nothing for a plain weight."""
    if isinstance(weight, Node):
        yield weight
        for name in weight.parts:
            yield from nodes_of(getattr(weight, name))


def innermost(f: Callable[..., Any], weight: Any, *rest: Any) -> Any:
    """The weight with `f(plain weight, ...)` in place of each plain weight inside; `rest`: weights of the same nodes, such as
    the Specs of values."""
    if not isinstance(weight, Node):
        return f(weight, *rest)
    parts = {name: innermost(f, *(getattr(w, name) for w in (weight, *rest))) for name in weight.parts}
    return dataclasses.replace(weight, **parts)


def drawn(node: Node, names: Sequence[str], path: str, base: Any, key: jax.Array) -> Any:
    """A node of Specs as one of values around `base`: the fields of these names drawn by their Specs, in the base's dtype."""
    values = init({f"{path}/{name}": getattr(node, name) for name in names}, key, float_dtype(base))
    return dataclasses.replace(node, base=base, **{name: values[f"{path}/{name}"] for name in names})


def float_dtype(weight: Any):
    """The dtype of a weight's numbers, of codes and scales that of the scales."""
    return next(leaf.dtype for leaf in jax.tree.leaves(weight) if jnp.issubdtype(leaf.dtype, jnp.inexact))


def matrix(w: jax.Array, n_stacked: int, n_in: int) -> jax.Array:
    """[*L, *I, *O] -> [*L, I, O]."""
    stacked, inputs = w.shape[:n_stacked], w.shape[n_stacked : n_stacked + n_in]
    return w.reshape(*stacked, math.prod(inputs), -1)
