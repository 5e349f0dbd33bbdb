"""`jaxeff train`: train a config, or go on where it was interrupted."""

import argparse
import functools
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
        "--data", action="append", default=[], metavar="PATH", help="text of your own: a file or a folder; may be repeated"
    )
    parser.add_argument("--field", metavar="NAME", help="with --data: the field of JSON lines that holds their text")
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
    from jaxeff.train.own_text import on_text
    from jaxeff.train.progress import shown
    from jaxeff.train.public import onto
    from jaxeff.train.signals import on_signal
    from jaxeff.train.vocabulary import fitting

    experiment = load(args.config)
    if args.data or args.field is not None:
        experiment = on_text(experiment, args.data, args.field)
    experiment = override(experiment if args.base is None else onto(experiment, args.base), args.set)
    with on_signal() as stop, shown() as report:
        train = functools.partial(fit, workdir=args.workdir, report=report, stop=stop)
        result = fitting(experiment, args.workdir, args.set, train, report)
    if result.stopped:
        again = shlex.join(["jaxeff", *sys.argv[1:]])
        print(f"stopped and saved at step {result.step} of {experiment.train.steps}; to go on: {again}", flush=True)
        return stop.stopped().status
    score = "" if result.score is None else f": validation {experiment.objective.score.describe(result.score)}"
    print(f"trained {result.step} steps in {args.workdir}{score}")
