"""`jaxeff generate`: sample text from a trained model."""

import argparse

from jaxeff.cli.arguments import any_base, config, encodable, sampled, sampling, workdir_or_public
from jaxeff.cli.speaker import speaker


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument(
        "--prompt",
        action="append",
        help="the text to go on from (default: the start of a document); several: one answer each",
    )
    sampling(parser, 0.0, 100)
    any_base(parser)
    config(parser)
    workdir_or_public(parser, "folder of a run; several: one answer each, by their adapters on one base", several=True)


def run(args: argparse.Namespace) -> None:
    """Does it."""
    import numpy as np

    from jaxeff.models.generate import generate

    prompts = [encodable(prompt) for prompt in args.prompt or [""]]
    model, weights, tokenizer, policy, names = speaker(args, len(prompts))
    prompts = prompts * len(names) if names else prompts
    rows = [tokenizer.prompt(prompt) or [tokenizer.bos_id] for prompt in prompts]
    longest = max(map(len, rows))
    tokens_BN = generate(
        model,
        weights,
        np.asarray([row + [0] * (longest - len(row)) for row in rows], np.int32),
        args.max_tokens,
        prompt_lengths=np.asarray([len(row) for row in rows]),
        eos=tokenizer.ends,
        policy=policy,
        **sampled(args),
    )
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        new = np.asarray(tokens_BN[i]).tolist()
        new = new[: next((n for n, token in enumerate(new) if token in tokenizer.ends), len(new))]
        if names:
            print(f"{names[i]}:")
        print(prompt + tokenizer.decode(row + new)[len(tokenizer.decode(row)) :])
