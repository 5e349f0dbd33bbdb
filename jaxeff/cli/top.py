"""`jaxeff top`: runs while they train: how far, how well, how fast, and what their time goes into."""

import argparse
import sys

from jaxeff.cli.arguments import folder, seconds, workdir
from jaxeff.cli.runs import width
from jaxeff.core.errors import warn


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    workdir(parser, "a run, or a folder with runs a few levels below; may be repeated", several=True, type=folder)
    parser.add_argument("--once", action="store_true", help="show it once, as is also done where there is no terminal")
    parser.add_argument(
        "--every", type=seconds, default=1.0, metavar="SECONDS", help="show it anew so often (default 1)"
    )


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.lab.watching import Watch, follow

    watch = Watch(args.workdir, warn)
    if args.once or not sys.stdout.isatty():
        print(watch.text(width()))
    else:
        follow(watch, args.every)
