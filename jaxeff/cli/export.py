"""`jaxeff export`: a model as files that run without jaxeff, by jax.export."""

import argparse

from jaxeff.cli.arguments import any_base, config, out, workdir_or_public
from jaxeff.cli.speaker import speaker


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--batch", type=int, default=1, help="texts at once (default 1)")
    parser.add_argument("--prompt-length", type=int, default=64, help="of the longest prompt, in tokens (default 64)")
    parser.add_argument("--max-length", type=int, default=256, help="of the longest text (default 256)")
    parser.add_argument("--platforms", metavar="P,...", help="cpu, cuda, tpu (default: that of this machine)")
    out(parser, "folder of the files")
    any_base(parser)
    config(parser)
    workdir_or_public(parser)


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.interop.export import export

    args.workdir = args.workdir and [args.workdir]
    model, weights, tokenizer, policy, _ = speaker(args, 1)
    ids = {} if tokenizer is None else {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    platforms = args.platforms and args.platforms.split(",")
    export(
        args.out, model, weights, batch=args.batch, prompt=args.prompt_length, max_len=args.max_length, policy=policy,
        platforms=platforms, ids=ids,
    )  # fmt: skip
    print(f"written to {args.out}: prefill.bin, decode.bin, weights.safetensors, model.json")
