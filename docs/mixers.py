"""Writes docs/mixers.md from the registry, the docstrings and docs/parity.json:

python docs/mixers.py                 # the page
python docs/mixers.py --check         # exit 1 where the page is not what it would write
python docs/mixers.py --parity FILE   # parity.json anew from the errors that `make parity` found, then the page
"""

import argparse
import inspect
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxeff.core.spec import count
from jaxeff.lab.columns import binary, si
from jaxeff.mixers.registry import CHANNEL_MIXERS, MIXERS

FOLDER = Path(__file__).parent
PAGE, PARITY = FOLDER / "mixers.md", FOLDER / "parity.json"
WIDTH = 256  # of the sizes in the table

# What a mixer's numbers are compared with, by class; the makers in tests/golden say how.
PUBLISHED = {
    "Mamba": "Transformers: Mamba, Falcon-Mamba",
    "Mamba2": "Transformers: Mamba-2",
    "RWKV4": "Transformers: RWKV",
    "RWKV4Channel": "Transformers: RWKV",
    "RGLRU": "Transformers: RecurrentGemma",
    "GatedDeltaNet": "Transformers: Qwen3-Next",
    "DeltaNet": "flash-linear-attention, plain recurrence",
    "KDA": "flash-linear-attention, plain recurrence",
    "GatedDeltaProduct": "flash-linear-attention, plain recurrence",
    "GLA": "flash-linear-attention, plain recurrence",
    "RetNet": "flash-linear-attention, plain recurrence",
    "RWKV6": "flash-linear-attention, its layer",
    "RWKV6Channel": "flash-linear-attention, its layer",
    "RWKV7": "flash-linear-attention, plain recurrence",
    "RWKV7Channel": "flash-linear-attention, said again",
}

HEAD = f"""# Mixers

<!-- written by `python docs/mixers.py`, which CI repeats; change the docstrings instead -->

Every mixer of the registries, by the name that configs and ablations use. Each works as `Mixer(d_model=256)`; sizes that are left
out derive from `d_model`. Sizes in the table are those at D {WIDTH}; the state is that of one sequence in float32, after 64 and
after 4096 tokens. Parity is the relative RMS error in float32 against published code with the same weights, of outputs and of the
worst gradient, the largest of all its cases; `make parity` measures it again.
"""


def rows(parity):
    """The lines of the table."""
    yield "| name | parameters | state at 64 | at 4096 | compared with | outputs | worst gradient |"
    yield "|---|---|---|---|---|---|---|"
    for name, make in (MIXERS | CHANNEL_MIXERS).items():
        mixer = make(WIDTH)
        kind = type(mixer).__name__
        error = parity.get(kind, {})
        found = [f"{error[key]:.0e}" if key in error else "\u2013" for key in ("output", "gradient")]
        sizes = [binary(n_bytes or None) for n_bytes in (_bytes(mixer, n) for n in (64, 4096))]
        yield (
            f"| [`{name}`](#{name}) | {si(count(mixer.specs()))} | "
            + " | ".join([*sizes, PUBLISHED.get(kind, "\u2013"), *found])
            + " |"
        )


def _bytes(mixer, n: int) -> int:
    state = jax.eval_shape(lambda: mixer.init_state(1, n, jnp.float32))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def sections():
    """One section for each module, one below it for each name."""
    modules = {}
    for name, make in (MIXERS | CHANNEL_MIXERS).items():
        modules.setdefault(inspect.getmodule(make), []).append((name, make))
    for module, entries in modules.items():
        yield f"## {', '.join(name for name, _ in entries)}\n"
        yield inspect.getdoc(module) + "\n"
        for name, make in entries:
            yield f"### {name}\n"
            yield f"`jaxeff.mixers.{make.__name__}`\n"
            yield _indented(inspect.getdoc(make)) + "\n"


def _indented(text: str) -> str:
    """A docstring whose formula of the parameters is shown as code."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        f"Parameters:\n\n    {p.removeprefix('Parameters: ')}" if p.startswith("Parameters: ") else p
        for p in paragraphs
    )


def page() -> str:
    """The whole text."""
    parity = json.loads(PARITY.read_text())
    return "\n".join([HEAD, *rows(parity), "", *sections()]).rstrip() + "\n"


def gathered(path: Path):
    """The largest errors by class, of all lines of a record."""
    found = {}
    for line in path.read_text().splitlines():
        case = json.loads(line)
        here = found.setdefault(case["mixer"], {"output": 0.0, "gradient": 0.0})
        for key in here:
            here[key] = max(here[key], float(f"{case[key]:.1e}"))
    return dict(sorted(found.items()))


def main() -> int:
    """See the head of this file."""
    options = argparse.ArgumentParser()
    options.add_argument("--check", action="store_true")
    options.add_argument("--parity", type=Path)
    asked = options.parse_args()
    if asked.parity is not None:
        PARITY.write_text(json.dumps(gathered(asked.parity), indent=1) + "\n")
    if asked.check:
        if PAGE.read_text() != page():
            print("docs/mixers.md is not what its sources say: python docs/mixers.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
