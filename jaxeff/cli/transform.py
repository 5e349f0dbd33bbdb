"""`jaxeff transform`: a run whose weights are those of another, transformed."""

import argparse

from jaxeff.cli.arguments import config, define, out, workdir
from jaxeff.cli.comparison import before_and_after


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--apply", required=True, metavar="TRANSFORMS", help="such as 'LowRank(energy=0.9), Int8()'")
    parser.add_argument("--calibrate", type=int, default=0, metavar="N", help="look at N rows of text first")
    out(parser)
    config(parser)
    workdir(parser)


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.train.overrides import transforms
    from jaxeff.train.progress import shown
    from jaxeff.train.rewrite import transform

    define(args.config)
    chosen = transforms(args.apply)
    with shown() as report:
        found = transform(args.workdir, chosen, args.out, calibrate=args.calibrate, report=report)
    before_and_after(*found, args.out)
