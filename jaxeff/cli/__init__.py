"""`jaxeff`: a thin layer over functions that a notebook can call too. A command is a file of this folder and a name in COMMANDS.

Such a file says in the first line of its docstring what the command does; its `arguments` gives a parser what it takes, its `run`
does it and returns an exit status, None for 0. It imports what needs JAX within `run`: `jaxeff --help` does not wait for it.

Exit status: 0 when done; 2 when the user can put it right, one line on stderr; 130, 143 or 129 when SIGINT, SIGTERM or SIGHUP ended it;
and 1, with a traceback, when the fault is ours.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Sequence

from jaxeff import __version__
from jaxeff.cli import (
    ablate,
    bench,
    chat,
    compare,
    convert,
    describe,
    env,
    eval,
    export,
    generate,
    list,
    merge,
    record,
    report,
    runs,
    train,
    transform,
)
from jaxeff.cli.arguments import Parser
from jaxeff.core.errors import UserError, warn
from jaxeff.train.signals import ends_in_time, on_signal

COMMANDS = {
    "train": train,
    "eval": eval,
    "generate": generate,
    "chat": chat,
    "ablate": ablate,
    "record": record,
    "runs": runs,
    "compare": compare,
    "report": report,
    "transform": transform,
    "merge": merge,
    "convert": convert,
    "export": export,
    "bench": bench,
    "list": list,
    "describe": describe,
    "env": env,
}


def parser() -> Parser:
    """The command line."""
    top = Parser(prog="jaxeff", description="Efficient language models: train, evaluate, generate, compare.")
    top.add_argument("--version", action="version", version=f"jaxeff {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        does = command.__doc__.splitlines()[0].partition(": ")[2].rstrip(".")
        command.arguments(commands.add_parser(name, help=does, description=does, **getattr(command, "OPTIONS", {})))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    args = parser().parse_args(argv)
    in_time = ends_in_time() if threading.current_thread() is threading.main_thread() else contextlib.nullcontext()
    try:
        with on_signal(), in_time:
            status = COMMANDS[args.command].run(args)
            sys.stdout.flush()
    except UserError as error:
        return _refuse(str(error))
    except KeyboardInterrupt as stopped:
        warn(str(stopped) or "stopped")
        return getattr(stopped, "status", 130)
    except BrokenPipeError:
        # The reader of our output went away (`jaxeff eval ... | head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # The file system's refusals are no bug of ours, wherever they strike.
        from jaxeff.core.files import refusal

        reason = refusal(error)
        if reason is None:
            raise
        return _refuse(f"{error.filename}: {reason}" if error.filename else reason)
    return status or 0


def _refuse(text: str) -> int:
    warn(f"error: {text}")
    return 2
