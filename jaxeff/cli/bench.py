"""`jaxeff bench`: measure ourselves; `jaxeff bench` lists what."""

import argparse

from jaxeff.cli.arguments import Parser

# The benchmarks' own options come from their functions, which are read when one is asked for.
OPTIONS = {"add_help": False}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="NAME ...")


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.bench import registry

    inner = Parser(prog="jaxeff bench")
    registry.add_arguments(inner)
    options = vars(inner.parse_args(args.arguments))
    registry.run(options.pop("benchmark"), options.pop("json", None), **options)
