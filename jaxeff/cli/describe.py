"""`jaxeff describe`: a model as a table of its weights, and what it costs, before anything is run."""

import argparse

from jaxeff.cli.arguments import config, define, place


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("experiment", nargs="?", metavar="CONFIG", help="a Python file with config() -> Experiment")
    what.add_argument("--workdir", type=place, metavar="DIR", help="folder of a run instead")
    what.add_argument(
        "--model", metavar="NAME", help="a preset, see jaxeff list presets, or hf:DIR, a public checkpoint"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change a field: model.d_model=128"
    )
    config(parser, "of a run that defines classes of its own")


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.train.description import describe
    from jaxeff.train.overrides import override

    print(describe(override(_experiment(args), args.set), run=args.model is None))


def _experiment(args: argparse.Namespace):
    """What is to be described; a model alone stands in an experiment of defaults."""
    from jaxeff.core.errors import lookup
    from jaxeff.models.presets import PRESETS
    from jaxeff.train.config_file import load
    from jaxeff.train.experiment import Experiment
    from jaxeff.train.public import folder_of, hf_model
    from jaxeff.train.workdir import stored_experiment

    if args.workdir is not None:
        define(args.config)
        return stored_experiment(args.workdir)
    if args.model is None:
        return load(args.experiment)
    public = folder_of(args.model)
    return Experiment(lookup(PRESETS, args.model, "preset")() if public is None else hf_model(public))
