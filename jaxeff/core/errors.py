"""Errors that a person can act on."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 20  # names listed when none is near


class UserError(ValueError):
    """The input is at fault, not the program: the command line shows it as one line, without a traceback."""


def warn(text: str) -> None:
    """One line on stderr: of what goes on all the same."""
    print(f"jaxeff: {' '.join(text.split())}", file=sys.stderr, flush=True)


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """The end of an error message: the known names most like `name`, or all of them when none is near."""
    known = sorted(known)
    close = get_close_matches(name, known, n=n, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
    return f"known: {shown}" if known else "nothing is known here"


def lookup(registry: dict, name: str, what: str):
    """`registry[name]`, or a `UserError` that names `what` was looked for and the nearest names."""
    if name not in registry:
        raise UserError(f"no {what} is called {name!r}; {nearest(name, registry)}")
    return registry[name]
