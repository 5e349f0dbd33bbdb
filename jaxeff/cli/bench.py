"""`jaxeff bench`: measure ourselves; `jaxeff bench` lists what."""

import argparse

from jaxeff.cli.arguments import Parser

# The benchmarks' own options come from their functions, which are read when one is asked for.
OPTIONS = {"add_help": False}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("-h", "--help", action="store_true", help="the benchmarks; after NAME: the options of that one")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="NAME ...")


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.bench import registry

    words = args.arguments + ["--help"] * (args.help and bool(args.arguments))
    if args.help and not words:
        print("usage: jaxeff bench NAME [--option VALUE ...]\n\nThe options of one: jaxeff bench NAME --help\n")
    options = vars(inner().parse_args(words))
    registry.run(options.pop("benchmark"), options.pop("json", None), **options)


def inner() -> Parser:
    """The parser of a benchmark's name and options."""
    from jaxeff.bench import registry

    parser = Parser(prog="jaxeff bench")
    registry.add_arguments(parser)
    return parser
