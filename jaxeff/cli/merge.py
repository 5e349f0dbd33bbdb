"""`jaxeff merge`: a run with the weights of others as plain arrays, adapters merged."""

import argparse

from jaxeff.cli.arguments import config, define, out, seed, workdir
from jaxeff.cli.comparison import before_and_after
from jaxeff.core.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    by = parser.add_argument("--by", metavar="METHOD", help="joins several: soup, slerp, ties, dare or task_arithmetic")
    by.completes = ("soup", "slerp", "ties", "dare", "task_arithmetic")
    parser.add_argument("--base", metavar="DIR", help="the run that the others learned from, for the last three")
    parser.add_argument(
        "--scales", metavar="X,Y,...", help="a number for each run; slerp: share of the second; ties: density, scale"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of what dare leaves out")
    out(parser)
    config(parser)
    workdir(parser, "folder of a run; may be repeated", several=True)


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.train.progress import shown
    from jaxeff.train.rewrite import joined, merge

    define(args.config)
    scales = _numbers(args.scales)
    with shown() as report:
        join = joined(args.by, len(args.workdir), args.base, scales, args.seed, report)
        found = merge(args.workdir, args.out, join, report)
    before_and_after(*found, args.out)


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--scales {text}: expected numbers, such as 0.5,0.5") from None
