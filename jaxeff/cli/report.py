"""`jaxeff report`: a page about one run: its curves, config, data and circumstances."""

import argparse

from jaxeff.cli.arguments import folder
from jaxeff.cli.runs import warn


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("folder", type=folder, metavar="DIR", help="folder of the run")
    parser.add_argument("--out", type=folder, metavar="FILE", help="where the page goes (default DIR/report.html)")


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.lab.run_report import write

    print(write(args.folder, args.out, warn))
