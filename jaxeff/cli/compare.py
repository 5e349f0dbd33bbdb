"""`jaxeff compare`: two runs: their configs, scores and curves beside each other."""

import argparse

from jaxeff.cli.arguments import folder
from jaxeff.cli.runs import warn, width


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("a", type=folder, metavar="A", help="folder of a run")
    parser.add_argument("b", type=folder, metavar="B", help="folder of another")


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.lab.compare import compare

    print(compare(args.a, args.b, warn, max(20, min(60, (width() or 80) - 10))))
