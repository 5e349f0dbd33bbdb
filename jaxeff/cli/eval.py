"""`jaxeff eval`: loss, perplexity and bits per byte of a trained model, or its scores in tasks of lm-eval."""

import argparse

from jaxeff.cli.arguments import any_base, config, define, public, workdir_or_public

# What the weights of an objective's sums count, where a person wants to know.
UNITS = {"loss": "targets", "bits": "bytes"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--split", default="validation", help="train, validation (default) or test")
    parser.add_argument("--tasks", metavar="NAME,...", help="tasks of lm-eval instead, scored as its own models are")
    parser.add_argument("--include-path", metavar="DIR", help="folder with tasks of your own, as lm-eval reads them")
    any_base(parser)
    config(parser, "of a run that defines classes of its own; of a public checkpoint: whose data it is to read")
    workdir_or_public(parser)


def run(args: argparse.Namespace) -> None:
    """Does it."""
    print(_read(args) if args.tasks is None else _tasks(args))


def _read(args: argparse.Namespace) -> str:
    """The readings on a split of the data."""
    from jaxeff.evaluate.scores import evaluate
    from jaxeff.train.config_file import load
    from jaxeff.train.progress import shown
    from jaxeff.train.public import load_public
    from jaxeff.train.trained import load_trained

    with shown() as report:
        if args.model is None:
            define(args.config)
            run = load_trained(args.workdir, report, args.any_base, [args.split])
        else:
            run = load_public(public(args.model), None if args.config is None else load(args.config), report)
        e, batches = run.experiment, run.prepared.eval(args.split)
        found = evaluate(e.objective, e.model, run.weights, batches, policy=e.policy, report=report.stage)
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.scores.items())
    weights = ", ".join(f"{found.sums[name].weight:,.0f} {unit}" for name, unit in UNITS.items() if name in found.sums)
    when = f" at step {run.step}" if args.model is None else ""
    return f"{args.split}{when}: {scores} ({weights})"


def _tasks(args: argparse.Namespace) -> str:
    """The table of lm-eval's tasks."""
    import jaxeff.train.lm_eval  # noqa: F401  tells lm-eval of us
    from jaxeff.evaluate.lm_eval import table

    define(args.config)
    model = args.workdir if args.model is None else public(args.model)
    return table(args.tasks, args.include_path, model=model, any_base=args.any_base)
