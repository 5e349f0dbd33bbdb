"""`jaxeff convert`: a run as a public checkpoint, or a public checkpoint as a run."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("source", metavar="SRC", help="folder of a run, or hf:DIR for a public checkpoint")
    parser.add_argument("target", metavar="DST", help="the same; at least one is hf:DIR")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the public checkpoint's numbers"
    )


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.train.progress import shown
    from jaxeff.train.public import convert

    with shown() as report:
        print(convert(args.source, args.target, args.dtype, report))
