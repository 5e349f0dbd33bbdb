"""An experiment in words and numbers before it is run: its model as a table, and what it costs. No weight is made, no data read.

print(describe(experiment))
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, abstract, count
from jaxeff.evaluate.flops import flops
from jaxeff.mixers.base import Ctx
from jaxeff.train.experiment import Experiment
from jaxeff.train.outline import Part, outline

WIDTH = 120  # columns of the terminal
GAP = "  "


def describe(experiment: Experiment, run: bool = True) -> str:
    """The model as an indented table, then its costs. run: whether the length of the run is told, too.

    Raises UserError for rules of transforms that match nothing.
    """
    told = {name: text for name, text in facts(experiment).items() if run or name not in ("step", "run")}
    width = max(map(len, told))
    return "\n".join(
        [*table(outline(experiment.weights)), "", *(f"{name:{width}}{GAP}{text}" for name, text in told.items())]
    )


def table(model: Part) -> list[str]:
    """The lines of a tree of parts, with a heading; what trains is told where not all does, one layer where any is repeated."""
    heading = ("", "shape", "axes", "one layer", "parameters", "trained")
    rows = [heading, *_rows(model)]
    shown = [i for i in range(len(heading)) if not (i == 3 and not any(row[3] for row in rows[1:]))]
    shown = shown[:-1] if model.trained == model.count else shown
    rows, n = [tuple(row[i] for i in shown) for row in rows], len(shown)
    # A note stands in the place of shape and axes, and runs on into the blank beside it.
    widths = [max(len(row[i]) for row in rows if not (i == 1 and _is_note(row))) for i in range(n)]
    notes = max((len(row[1]) for row in rows if _is_note(row)), default=0)
    widths[2] = max(widths[2], notes - widths[1] - len(GAP))
    spare = WIDTH - sum(widths) - len(GAP) * (n - 1)
    widths[2] += min(spare, 0)
    return [_line(row, widths) for row in rows]


def facts(experiment: Experiment) -> dict[str, str]:
    """What the experiment costs, a line each: "parameters", "weights", "forward", "decoding", "step", "run"."""
    e, policy, length = experiment, experiment.policy, experiment.data.seq_len
    leaves = jax.tree.leaves(e.specs)
    stored = sum(leaf.size * jnp.dtype(leaf.dtype or policy.param).itemsize for leaf in leaves)
    params = abstract(e.specs, jnp.dtype(policy.param))
    computed = "" if policy.compute == policy.param else f", computed in {policy.compute}"
    parts = "" if e.train.accumulate == 1 else f", in {e.train.accumulate} micro-batches"
    return {
        "parameters": parameters(e),
        "weights": f"{_bytes(stored)} ({stored:,} bytes) in {_dtypes(leaves, policy.param)}{computed}",
        "forward": _forward(e, params, length),
        "decoding": f"{_bytes(_state_bytes(e, params, length))} of state for a text of {length:,} tokens",
        "step": f"{e.data.batch_size * length:,} tokens: {e.data.batch_size:,} rows of {length:,}{parts}",
        "run": length_of(e),
    }


def parameters(experiment: Experiment) -> str:
    """How many the model has, and how many of them train."""
    return _trained(outline(experiment.weights), count(experiment.model.specs()))


def length_of(experiment: Experiment) -> str:
    """Tokens, places of padding among them, and steps."""
    tokens = experiment.data.batch_size * experiment.data.seq_len
    return f"{experiment.train.steps * tokens:,} tokens in {experiment.train.steps:,} steps"


def _rows(part: Part, depth: int = 0, copies: int = 1, repeated: bool = False) -> Iterator[tuple[str, ...]]:
    """A part and what is below it, a tuple of texts each."""
    name = part.name
    while len(part.parts) == 1 and _plain(part) and _plain(part.parts[0]):
        part = part.parts[0]
        name = f"{name}/{part.name}"
    whole = copies * part.count
    repeated |= part.copies > 1
    label = (
        "  " * depth
        + name
        + (f"  x {part.copies}" if part.copies > 1 else "")
        + (f"  {part.kind}" if part.kind else "")
    )
    shape, axes = (
        (part.note, "") if part.spec is None else (_shape(part.spec), " ".join(a or "-" for a in part.spec.axes))
    )
    trained = copies * part.trained
    yield label, shape, axes, f"{part.one:,}" if repeated else "", f"{whole:,}", f"{trained:,}" if trained else "-"
    for inner in part.parts:
        yield from _rows(inner, depth + 1, copies * part.copies, repeated)


def _plain(part: Part) -> bool:
    """Whether nothing is to be said of a part but its name and numbers."""
    return not (part.kind or part.note) and part.copies == 1


def _is_note(row: tuple[str, ...]) -> bool:
    return bool(row[1]) and not row[2]


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    name, shape, axes, *numbers = row
    if _is_note(row):
        middle = f"{_cut(shape, widths[1] + len(GAP) + widths[2]):{widths[1] + len(GAP) + widths[2]}}"
    else:
        middle = f"{shape:{widths[1]}}{GAP}{_cut(axes, widths[2]):{widths[2]}}"
    return GAP.join([f"{name:{widths[0]}}", middle, *map(str.rjust, numbers, widths[3:])]).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 3, 0)] + "..."


def _shape(spec: Spec) -> str:
    kept = "" if spec.dtype is None else f" {jnp.dtype(spec.dtype).name}"
    return (" x ".join(map(str, spec.shape)) or "scalar") + kept


def _trained(model: Part, plain: int) -> str:
    """plain: the parameters of the model before transforms."""
    before = "" if model.count == plain else f"; {plain:,} before transforms"
    if model.trained == model.count:
        return f"{model.count:,}, all of them trained{before}"
    return (
        f"{model.count:,}, of which {model.trained:,} ({100 * model.trained / model.count:.3g} %) are trained{before}"
    )


def _dtypes(leaves: list[Spec], default: str) -> str:
    """The number formats of the weights, that of most weights first."""
    sizes: dict[str, int] = {}
    for leaf in leaves:
        name = jnp.dtype(leaf.dtype or default).name
        sizes[name] = sizes.get(name, 0) + leaf.size
    return " and ".join(sorted(sizes, key=sizes.get, reverse=True))


def _forward(experiment: Experiment, params: Any, length: int) -> str:
    """FLOPs of a forward pass, logits included, of one text."""
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    ctx = Ctx(policy=experiment.policy)
    found = flops(lambda params, tokens: experiment.model.apply(params, tokens, ctx=ctx).y, params, tokens)
    share = 100 * found["matmul"] / found["total"]
    text = f"{_si(found['total'] / length)}FLOPs a token at {length:,} tokens, {share:.0f} % in matrix products"
    n = int(found["uncounted"])
    return text + (f"; not counted: {n} {'part' if n == 1 else 'parts'} of unknown cost" if n else "")


def _state_bytes(experiment: Experiment, params: Any, length: int) -> int:
    """Bytes of the state of one text of `length` tokens, a learned start included."""
    ctx = Ctx(policy=experiment.policy)
    state = jax.eval_shape(lambda params: experiment.model.start(params, 1, length, ctx=ctx), params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _bytes(n: int) -> str:
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(max(n.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{n} bytes" if power == 0 else f"{n / 1024**power:.1f} {units[power]}"


def _si(n: float) -> str:
    """A number before its unit: "2.4 M"."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if n >= 10**power:
            return f"{n / 10**power:.3g} {prefix}"
    return f"{n:.3g} "
