"""The benchmarks by name, and the options each takes: the keyword arguments of its function."""

import argparse
import inspect
from collections.abc import Callable

from jaxeff.bench.attention_memory import attention_memory
from jaxeff.bench.decode import generate
from jaxeff.bench.record import show, write
from jaxeff.bench.running import checkpoint, data
from jaxeff.bench.startup import compile_time, import_time
from jaxeff.bench.training import train
from jaxeff.core.errors import lookup

BENCHMARKS: dict[str, Callable[..., dict]] = {
    "train": train,
    "attention-memory": attention_memory,
    "generate": generate,
    "checkpoint": checkpoint,
    "data": data,
    "compile": compile_time,
    "import": import_time,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME, --json, and the options of every benchmark, each with its default."""
    names = parser.add_subparsers(dest="benchmark", required=True, metavar="NAME")
    for name, function in BENCHMARKS.items():
        summary = inspect.getdoc(function).splitlines()[0]
        one = names.add_parser(name, help=summary, description=inspect.getdoc(function),
                               formatter_class=argparse.RawDescriptionHelpFormatter)
        one.add_argument("--json", metavar="FILE", help="also write the record to FILE")
        for option in inspect.signature(function).parameters.values():
            one.add_argument("--" + option.name.replace("_", "-"), default=option.default, metavar="VALUE",
                             type=str if option.default is None else type(option.default),
                             help="default: " + ("none" if option.default is None else str(option.default)))


def run(name: str, json: str | None = None, **options) -> dict:
    """Runs a benchmark, prints its table, writes its record to the file `json` where one is named, and returns it."""
    entry = lookup(BENCHMARKS, name, "benchmark")(**options)
    show(entry)
    if json is not None:
        write(entry, json)
    return entry
