"""`jaxeff runs`: a table of the runs in some folders, best first."""

import argparse
import os
import shutil
import sys

from jaxeff.cli.arguments import folder
from jaxeff.core.errors import warn


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument(
        "folders", nargs="+", type=folder, metavar="DIR", help="a run, or a folder with runs a few levels below"
    )
    parser.add_argument(
        "--where", action="append", default=[], metavar="PATH=VALUE",
        help="only runs whose config is so: optim.name=adamw, 'optim.lr>1e-3'; also != <= >= <; several: all of them",
    )  # fmt: skip
    parser.add_argument("--show", action="append", default=[], metavar="FIELD", help="a config field as a column more")
    parser.add_argument(
        "--sort", default="score", metavar="NAME",
        help="a column (default score): folder, step, state, loss, tokens, seconds, written, mfu, goodput or one of --show",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.lab.runs import chosen, listed, table

    found = listed(args.folders, warn)
    fitting = chosen(found, args.where)
    if not fitting:
        print(f"none of {len(found)} runs has {' and '.join(args.where)}")
        return
    print(table(fitting, list(dict.fromkeys(args.show)), args.sort, width()))


def width() -> int | None:
    """That of the terminal, None where output goes elsewhere and nobody says how wide it is."""
    there = sys.stdout.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if there else None
