"""`jaxeff train`: train a config, or go on where it was interrupted."""

import argparse
import shlex
import sys

from jaxeff.cli.arguments import workdir


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("config", metavar="CONFIG", help="a Python file with config() -> Experiment")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change a field: train.steps=100"
    )
    parser.add_argument(
        "--base",
        metavar="DIR",
        help="the run whose weights it starts from; hf:DIR: a public checkpoint, model and tokenizer too",
    )
    workdir(parser)


def run(args: argparse.Namespace) -> int | None:
    """Does it."""
    from jaxeff.train.config_file import load
    from jaxeff.train.loop import fit
    from jaxeff.train.overrides import override
    from jaxeff.train.progress import shown
    from jaxeff.train.public import onto
    from jaxeff.train.signals import on_signal

    experiment = load(args.config)
    experiment = override(experiment if args.base is None else onto(experiment, args.base), args.set)
    with on_signal() as stop, shown() as report:
        result = fit(experiment, args.workdir, report=report, stop=stop)
    if result.stopped:
        again = shlex.join(["jaxeff", *sys.argv[1:]])
        print(f"stopped and saved at step {result.step} of {experiment.train.steps}; to go on: {again}", flush=True)
        return stop.stopped().status
    score = "" if result.score is None else f": validation {experiment.objective.score.describe(result.score)}"
    print(f"trained {result.step} steps in {args.workdir}{score}")
