"""`jaxeff eval`: loss, perplexity and bits per byte of a trained model, on its data or other text; or its scores in lm-eval."""

import argparse

from jaxeff.cli.arguments import any_base, config, define, joined, processes, public, workdir_or_public
from jaxeff.core.errors import UserError
from jaxeff.core.processes import finish

# What the weights of an objective's sums count, where a person wants to know.
UNITS = {"loss": "targets", "bits": "bytes"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    what = parser.add_mutually_exclusive_group()
    split = what.add_argument("--split", default="validation", help="train, validation (default) or test")
    split.completes = ("train", "validation", "test")
    what.add_argument(
        "--text",
        action="append",
        metavar="PATH",
        help="other text instead: a file or folder; several: one text together",
    )
    what.add_argument("--tasks", metavar="NAME,...", help="tasks of lm-eval instead, scored as its own models are")
    parser.add_argument("--field", metavar="NAME", help="with --text: the field of JSON lines that holds their text")
    parser.add_argument("--include-path", metavar="DIR", help="folder with tasks of your own, as lm-eval reads them")
    any_base(parser)
    config(parser, "of a run that defines classes of its own; of a public checkpoint: whose data it is to read")
    workdir_or_public(parser)
    processes(parser)


def run(args: argparse.Namespace) -> None:
    """Does it."""
    if args.field is not None and args.text is None:
        raise UserError(f"--field {args.field}: of which text? give --text FILE as well")
    joined(args)
    print(_read(args) if args.tasks is None else _tasks(args), flush=True)
    finish()


def _read(args: argparse.Namespace) -> str:
    """The readings on a split of the data, or on other text."""
    from jaxeff.evaluate.scores import evaluate
    from jaxeff.train.other_text import batches_of
    from jaxeff.train.progress import shown

    with shown() as report:
        run = _trained(args, report)
        e, what = run.experiment, args.split if args.text is None else ", ".join(args.text)
        batches = run.prepared.eval(what) if args.text is None else batches_of(run, args.text, args.field, report)
        found = evaluate(e.objective, e.model, run.weights, batches, policy=e.policy, report=report.stage)
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.scores.items())
    weights = ", ".join(f"{found.sums[name].weight:,.0f} {unit}" for name, unit in UNITS.items() if name in found.sums)
    when = f" at step {run.step}" if args.model is None else ""
    return f"{what}{when}: {scores} ({weights})"


def _trained(args: argparse.Namespace, report):
    from jaxeff.train.config_file import load
    from jaxeff.train.public import load_public
    from jaxeff.train.trained import load_trained

    if args.model is not None:
        return load_public(public(args.model), None if args.config is None else load(args.config), report)
    define(args.config)
    return load_trained(args.workdir, report, args.any_base, [] if args.text else [args.split])


def _tasks(args: argparse.Namespace) -> str:
    """The table of lm-eval's tasks."""
    import jaxeff.train.lm_eval  # noqa: F401  tells lm-eval of us
    from jaxeff.evaluate.lm_eval import table

    define(args.config)
    model = args.workdir if args.model is None else public(args.model)
    return table(args.tasks, args.include_path, model=model, any_base=args.any_base)
