"""`jaxeff record`: keep an ablation's results: a README with its table, and its plots."""

import argparse

from jaxeff.cli.arguments import folder, workdir


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("folder", metavar="FOLDER", help="where README.md goes: experiments/TOPIC")
    workdir(parser, "folder of the ablation", type=folder)


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.lab.record import record

    print(record(args.workdir, args.folder))
