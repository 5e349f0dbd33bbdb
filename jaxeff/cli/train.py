"""`jaxeff train`: train a config, or go on where it was interrupted."""

import argparse
import functools
import shlex
import sys

from jaxeff.cli.arguments import joined, processes, span, workdir
from jaxeff.core.errors import UserError
from jaxeff.core.processes import finish


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="a Python file with config() -> Experiment; without, the run in DIR goes on",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change a field: train.steps=100"
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="PATH",
        help="text of your own: a file or a folder; may be repeated",
    )
    parser.add_argument("--field", metavar="NAME", help="with --data: the field of JSON lines that holds their text")
    parser.add_argument(
        "--base",
        metavar="DIR",
        help="the run whose weights it starts from; hf:DIR: a public checkpoint, model and tokenizer too",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, and on what; train nothing")
    parser.add_argument("--force", action="store_true", help="begin even where memory cannot suffice")
    parser.add_argument(
        "--profile", type=span, metavar="FIRST:LAST", help="trace these steps of this start into DIR/profile, for XProf"
    )
    parser.add_argument("--profile-all", action="store_true", help="with --profile: in every process, not in 0 alone")
    workdir(parser)
    processes(parser)


def run(args: argparse.Namespace) -> int | None:
    """Does it."""
    from jaxeff.train.progress import shown

    with shown() as report:
        _start(report)
        joined(args)
        status, said = _told(args, report)
    print(said, flush=True)
    finish()
    return status


def _start(report) -> None:
    """Imports what takes a second, and says so first."""
    if "jax" not in sys.modules:
        report.stage("starting JAX", 0, 1)
        import jaxeff.train.loop  # noqa: F401

        report.stage("starting JAX", 1, 1)


def _told(args: argparse.Namespace, report) -> tuple[int | None, str]:
    """The exit status, and what is said at the end."""
    from jaxeff.train.vocabulary import fitting

    experiment = _experiment(args)
    if args.dry_run:
        return None, fitting(experiment, args.workdir, args.set, lambda e: plan(e, report), report)
    return _trained(args, experiment, report)


def _experiment(args: argparse.Namespace):
    """What the command line asks for."""
    from jaxeff.train.config_file import load
    from jaxeff.train.overrides import override
    from jaxeff.train.own_text import on_text
    from jaxeff.train.public import onto
    from jaxeff.train.workdir import stored_experiment

    if args.profile_all and args.profile is None:
        raise UserError("--profile-all needs --profile FIRST:LAST: which steps")
    experiment = stored_experiment(args.workdir) if args.config is None else load(args.config)
    if args.data or args.field is not None:
        experiment = on_text(experiment, args.data, args.field)
    return override(experiment if args.base is None else onto(experiment, args.base), args.set)


def _trained(args: argparse.Namespace, experiment, report) -> tuple[int | None, str]:
    from jaxeff.train.loop import fit
    from jaxeff.train.signals import agreed, on_signal
    from jaxeff.train.tracing import Profile
    from jaxeff.train.vocabulary import fitting

    profile = None if args.profile is None else Profile(*args.profile, everywhere=args.profile_all)
    with on_signal() as stop:
        train = functools.partial(
            fit, workdir=args.workdir, report=report, stop=agreed(stop), force=args.force, profile=profile
        )
        result = fitting(experiment, args.workdir, args.set, train, report)
    if result.stopped:
        again = shlex.join(["jaxeff", *sys.argv[1:]])
        return stop.stopped().status, (
            f"stopped and saved at step {result.step} of {experiment.train.steps}; to go on: {again}"
        )
    score = "" if result.score is None else f": validation {experiment.objective.score.describe(result.score)}"
    return None, f"trained {result.step} steps in {args.workdir}{score}"


def plan(experiment, report) -> str:
    """The resolved config, its model with what it costs, and its data."""
    from jaxeff.train.config_json import flatten, to_json
    from jaxeff.train.description import describe
    from jaxeff.train.loop import check_all, headline
    from jaxeff.train.room import least_bytes
    from jaxeff.train.step import make_step

    step = make_step(experiment)
    prepared = experiment.data.prepare(report=report.stage)
    check_all(experiment, prepared, step)
    config = "\n".join(f"{path} = {value!r}" for path, value in flatten(to_json(experiment)).items())
    told = flatten(prepared.statistics)
    width = max(map(len, told))
    data = "\n".join(
        f"{name:{width}}  {value:,}" if isinstance(value, int) else f"{name:{width}}  {value}"
        for name, value in told.items()
    )
    memory = f"memory  {sum(least_bytes(experiment, step).values()) / 2**20:,.1f} MiB on each device at the very least"
    return "\n\n".join([config, describe(experiment), memory, data, headline(experiment, prepared)])
