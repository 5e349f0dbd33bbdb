"""`jaxeff list`: what there is by name: mixers, optimizers, transforms, presets and more."""

import argparse
import textwrap

from jaxeff.cli.catalogue import KINDS

WIDTH = 120  # columns of the terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    kind = parser.add_argument("kind", nargs="?", metavar="KIND", help="mixers, presets, ...; without one, the kinds")
    kind.completes = tuple(KINDS)


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.cli.catalogue import entries, kinds

    if args.kind is not None:
        print("\n".join(_lines(entries(args.kind))))
        return
    found = kinds()
    shown = {kind: f"{n:4}  {place}" for kind, (n, place) in found.items()}
    print("\n".join([*_lines(shown), "", "Their names: jaxeff list KIND. On the right, where a name is used."]))


def _lines(texts: dict[str, str]) -> list[str]:
    """Names in a column, what is said of each beside it; what does not fit goes on below."""
    width = max(map(len, texts), default=0) + 2
    found = []
    for name, text in texts.items():
        first, *more = textwrap.wrap(text, WIDTH - width, drop_whitespace=False, replace_whitespace=False) or [""]
        found += [f"{name:{width}}{first}", *(" " * width + line.strip() for line in more)]
    return [line.rstrip() for line in found]
