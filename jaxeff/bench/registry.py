"""The benchmarks by name, and the options each takes: the keyword arguments of its function."""

import argparse
import inspect
from collections.abc import Callable

from jaxeff.bench.attention_memory import attention_memory
from jaxeff.bench.decode import decode
from jaxeff.bench.generation import generate
from jaxeff.bench.loading import load
from jaxeff.bench.maxtext import maxtext
from jaxeff.bench.mixers import mixers
from jaxeff.bench.record import show
from jaxeff.bench.recurrences import recurrences
from jaxeff.bench.running import checkpoint, data
from jaxeff.bench.startup import compile_time, import_time
from jaxeff.bench.tpu import published, tpu, tpu_transforms
from jaxeff.bench.tpu_loss import tpu_loss
from jaxeff.bench.training import train
from jaxeff.bench.transforms import transforms
from jaxeff.core.errors import UserError, lookup
from jaxeff.core.files import write_json

BENCHMARKS: dict[str, Callable[..., dict]] = {
    "train": train,
    "attention-memory": attention_memory,
    "decode": decode,
    "generate": generate,
    "load": load,
    "mixers": mixers,
    "recurrences": recurrences,
    "transforms": transforms,
    "tpu": tpu,
    "tpu-loss": tpu_loss,
    "tpu-transforms": tpu_transforms,
    "published": published,
    "maxtext": maxtext,
    "checkpoint": checkpoint,
    "data": data,
    "compile": compile_time,
    "import": import_time,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` a NAME, --json, and the options of that benchmark, each with its default."""
    names = parser.add_subparsers(dest="benchmark", metavar="NAME", help="without it, the list of benchmarks")
    for name, function in BENCHMARKS.items():
        one = names.add_parser(
            name,
            help=summary(function),
            description=inspect.getdoc(function),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument("--json", metavar="FILE", help="also write the record to FILE, as one JSON object")
        for option in inspect.signature(function).parameters.values():
            one.add_argument(
                "--" + option.name.replace("_", "-"),
                default=option.default,
                metavar="VALUE",
                type=str if option.default is None else type(option.default),
                help="default: " + ("none" if option.default is None else str(option.default)),
            )


def summary(function: Callable[..., dict]) -> str:
    """The first line of a benchmark's docstring."""
    return inspect.getdoc(function).splitlines()[0]


def run(name: str | None, json: str | None = None, **options) -> dict | None:
    """Runs a benchmark, prints its table, writes its record to the file `json` where one is named, and returns it.

    Without a name, prints the list of benchmarks. Raises UserError for a name that is none, a number below one, or a file that
    cannot be written.
    """
    if name is None:
        print("\n".join(f"{name:18}{summary(function)}" for name, function in BENCHMARKS.items()))
        return None
    for option, value in options.items():
        if type(value) is int and value < 1:
            raise UserError(f"--{option.replace('_', '-')} must be at least 1, found {value}")
    entry = lookup(BENCHMARKS, name, "benchmark")(**options)
    show(entry)
    if json is not None:
        write_json(json, entry)
    return entry
