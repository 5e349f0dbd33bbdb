"""The model that `generate` and `export` take: of a run, of several runs by their adapters, or public."""

import argparse

from jaxeff.cli.arguments import define, public
from jaxeff.core.errors import UserError


def speaker(args: argparse.Namespace, n_prompts: int):
    """(model, weights, tokenizer, policy, a name for each answer)"""
    import numpy as np

    from jaxeff.core.precision import POLICIES
    from jaxeff.train.progress import Silent
    from jaxeff.train.public import speaker
    from jaxeff.train.trained import load_adapters, load_trained
    from jaxeff.transforms.multi_lora import choose

    if args.model is not None:
        return *speaker(public(args.model)), POLICIES["float32"], []
    define(args.config)
    if len(args.workdir) == 1:
        run, names = load_trained(args.workdir[0], Silent(), args.any_base), []
        weights = run.weights
    elif n_prompts > 1:
        raise UserError("several prompts or several runs, not both")
    else:
        run, names = load_adapters(args.workdir, Silent(), args.any_base), args.workdir
        weights = choose(run.weights, np.arange(len(names)))
    return run.experiment.model, weights, run.prepared.tokenizer, run.experiment.policy, names
