"""`jaxeff generate`: sample text from a trained model."""

import argparse
import itertools

from jaxeff.cli.arguments import any_base, config, encodable, sampled, sampling, workdir_or_public
from jaxeff.cli.speaker import speaker


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument(
        "--prompt",
        action="append",
        help="the text to go on from (default: the start of a document); several: one answer each",
    )
    sampling(parser, 0.8, 100, top_p=0.95)
    any_base(parser)
    config(parser)
    workdir_or_public(parser, "folder of a run; several: one answer each, by their adapters on one base", several=True)


def run(args: argparse.Namespace) -> None:
    """Does it: one answer is shown as it is made, several are made together."""
    prompts = [encodable(prompt) for prompt in args.prompt or [""]]
    model, weights, tokenizer, policy, names = speaker(args, len(prompts))
    prompts = prompts * len(names) if names else prompts
    rows = [tokenizer.prompt(prompt) or [tokenizer.bos_id] for prompt in prompts]
    options = dict(eos=tokenizer.ends, policy=policy, **sampled(args))
    answer = _streamed if len(rows) == 1 else _together
    answer(model, weights, tokenizer, rows, args.max_tokens, options, prompts, names)


def _streamed(model, weights, tokenizer, rows, max_tokens, options, prompts, names) -> None:
    from jaxeff.cli.streaming import written
    from jaxeff.models.generate import stream

    tokens = stream(model, weights, rows[0], max_tokens, **options)
    written(_until(tokens, tokenizer.ends), lambda new: _continuation(tokenizer, rows[0], new), prompts[0])


def _together(model, weights, tokenizer, rows, max_tokens, options, prompts, names) -> None:
    import numpy as np

    from jaxeff.cli.streaming import write
    from jaxeff.models.generate import generate

    longest, lengths = max(map(len, rows)), np.asarray([len(row) for row in rows])
    padded = np.asarray([row + [0] * (longest - len(row)) for row in rows], np.int32)
    tokens_BN = np.asarray(generate(model, weights, padded, max_tokens, prompt_lengths=lengths, **options))
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        new = list(_until(tokens_BN[i].tolist(), tokenizer.ends))
        write((f"{names[i]}:\n" if names else "") + prompt + _continuation(tokenizer, row, new), end="\n")


def _until(tokens, ends):
    """The tokens before one that ends a text."""
    return itertools.takewhile(lambda token: token not in ends, tokens)


def _continuation(tokenizer, row: list[int], new: list[int]) -> str:
    """What new tokens add to the text of a row."""
    return tokenizer.decode(row + new)[len(tokenizer.decode(row)) :]
