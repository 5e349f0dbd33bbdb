"""`jaxeff chat`: talk with a public checkpoint in the terminal, by its own template.

A line is a turn; an empty line or the end of input ends it.
"""

import argparse
import sys

from jaxeff.cli.arguments import encodable, public, sampled, sampling


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--model", required=True, metavar="hf:DIR", help="a public checkpoint that was trained to chat")
    parser.add_argument("--system", metavar="TEXT", help="what it is told before the conversation")
    sampling(parser, 0.7, 512)


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.cli.streaming import written
    from jaxeff.models.generate import stream
    from jaxeff.train.public import speaker

    model, weights, tokenizer = speaker(public(args.model))
    options = sampled(args)
    said = [] if args.system is None else [{"role": "system", "content": args.system}]
    tokenizer.rendered([*said, {"role": "user", "content": "?"}])  # what cannot chat says so at once
    while (line := _line("> ")) is not None:
        said.append({"role": "user", "content": encodable(line)})
        tokens = stream(model, weights, tokenizer.chat(said), args.max_tokens, eos=tokenizer.ends, **options)
        said.append({"role": "assistant", "content": written(tokens, tokenizer.decode)})


def _line(prompt: str) -> str | None:
    """The next line of input, None when it is empty or there is none."""
    try:
        return input(prompt if sys.stdin.isatty() else "") or None
    except (EOFError, KeyboardInterrupt):
        return None
