"""Which part of a model an instruction serves, by the functions of Python that it comes from."""

import re
from collections.abc import Sequence

from jaxeff.plan.hlo import Place

# The first line that fits one frame of the stack, in this order: what is special stands before what is general.
RULES: tuple[tuple[str, str, str], ...] = (
    ("optimizer", r"optax/|jaxeff/train/(optim|galore|lomo)\.py", ""),
    ("optimizer", r"jaxeff/train/step\.py", r"descended\.<locals>\.<lambda>|_average"),
    ("head and loss", r"jaxeff/ops/losses\.py", ""),
    ("head and loss", r"jaxeff/models/lm\.py", r"LM\.logits"),
    ("norm", r"jaxeff/(mixers|ops)/norm\.py", ""),
    ("attention", r"jaxeff/ops/attention\w*\.py|splash_attention|jax/_src/nn/", ""),
    ("recurrence", r"jaxeff/ops/(gated_linear|delta_rule|diagonal_scan|selective_scan|wkv|pieces)\.py", ""),
    ("convolution", r"jaxeff/ops/conv\.py", ""),
    ("MLP", r"jaxeff/mixers/mlp\.py", ""),
    ("rotation", r"jaxeff/ops/rope\.py", ""),
    ("projections", r"jaxeff/core/(weight|matmul)\.py", ""),
    ("mixer", r"jaxeff/mixers/", r"\.(apply|_\w+)"),
    ("layers", r"jaxeff/models/(block|stack|descent)\.py", ""),
    ("embedding", r"jaxeff/models/lm\.py", ""),
    ("objective", r"jaxeff/(objectives|train)/", ""),
)
WAITING, COPIES = "waiting for other chips", "copies"
PARTS = (*dict.fromkeys(part for part, _, _ in RULES), COPIES, WAITING)


def part_of(stack: Sequence[Place]) -> str:
    """One of PARTS; COPIES for what the compiler added of its own. A weight that no layer asks for is the embedding."""
    for part, file, function in RULES:
        if any(re.search(file, place.file) and re.search(function, place.function) for place in stack):
            return "embedding" if part == "projections" and not _within_layer(stack) else part
    return COPIES


def _within_layer(stack: Sequence[Place]) -> bool:
    return any("jaxeff/mixers/" in place.file for place in stack)


def line_of(stack: Sequence[Place]) -> Place | None:
    """The line of the model: the innermost that is in a layer, a model, an objective or the step; else the innermost of all."""
    own = [
        place for place in stack if re.search(r"jaxeff/(mixers/(?!base|sliced)|models|objectives|train)", place.file)
    ]
    return next(iter([*own, *stack]), None)
