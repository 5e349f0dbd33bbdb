"""`jaxeff ablate`: compare models at equal size, with seeds and intervals."""

import argparse

from jaxeff.cli.arguments import folder, workdir


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("config", metavar="CONFIG", help="a Python file with ablation() -> Ablation")
    parser.add_argument("--only", metavar="NAME", help="one model of the ablation")
    workdir(parser, "folder of the ablation", type=folder)


def run(args: argparse.Namespace) -> int:
    """Does it."""
    from jaxeff.lab.command import ablate

    return ablate(args.config, args.workdir, args.only)
