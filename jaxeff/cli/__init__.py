"""`jaxeff`: a thin layer over functions that a notebook can call too. A command is a file of this folder and a name in COMMANDS.

Such a file says in the first line of its docstring what the command does; its `arguments` gives a parser what it takes, its `run`
does it and returns an exit status, None for 0. It imports what needs JAX within `run`: `jaxeff --help` does not wait for it.

Exit status: 0 when done, and without a command, for which the help is shown; 2 when the user can put it right, one line on stderr;
130, 143 or 129 when SIGINT, SIGTERM or SIGHUP ended it; 75 when another process of the same run ended; and 1, with a
traceback, when the fault is ours.
"""

import contextlib
import locale
import os
import sys
import threading
import traceback
from collections.abc import Sequence

from jaxeff import __version__
from jaxeff.cli import (
    ablate,
    bench,
    chat,
    compare,
    completion,
    convert,
    describe,
    env,
    eval,
    export,
    generate,
    launch,
    list,
    merge,
    plan,
    record,
    report,
    runs,
    top,
    train,
    transform,
)
from jaxeff.cli.arguments import Parser
from jaxeff.core.errors import UserError, warn
from jaxeff.core.lifeline import LOST
from jaxeff.core.processes import leave, lost, several
from jaxeff.core.xla import check_flags
from jaxeff.train.signals import ends_in_time, on_signal

COMMANDS = {
    "train": train,
    "launch": launch,
    "eval": eval,
    "generate": generate,
    "chat": chat,
    "ablate": ablate,
    "record": record,
    "runs": runs,
    "top": top,
    "compare": compare,
    "report": report,
    "transform": transform,
    "merge": merge,
    "convert": convert,
    "export": export,
    "bench": bench,
    "list": list,
    "describe": describe,
    "plan": plan,
    "env": env,
    "completion": completion,
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
    """Runs one command; returns the exit status. argv: None for that of the process, whose streams are then seen to.

    Where this process has joined others and they are not done together, it ends here and now.
    """
    try:
        status = _main(argv)
    except Exception:
        if several():
            traceback.print_exc()
            leave(1)
        raise
    leave(status)
    return status


def _main(argv: Sequence[str] | None) -> int:
    if argv is None:
        _streams()
    words = sys.argv[1:] if argv is None else argv
    if not words:
        parser().print_help()
        return 0
    args = parser().parse_args(words)
    in_time = ends_in_time() if threading.current_thread() is threading.main_thread() else contextlib.nullcontext()
    try:
        with on_signal(), in_time:
            check_flags(os.environ.get("XLA_FLAGS", ""))
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
    except Exception as error:
        if (ended := lost(error)) is not None:
            warn(f"error: {ended}")
            return LOST
        reason = _outside(error)
        if reason is not None:
            return _refuse(reason)
        warn("this is a fault of jaxeff: please report what follows, with what `jaxeff env` says")
        raise
    return status or 0


def _outside(error: Exception) -> str | None:
    """What file system, device or memory refused, which is no fault of ours wherever it strikes; None for other errors."""
    if isinstance(error, OSError):
        from jaxeff.core.files import refusal

        reason = refusal(error)
        return f"{error.filename}: {reason}" if reason and error.filename else reason
    text = str(error)
    if traceback.extract_tb(error.__traceback__)[-1].name == "backends":  # where JAX starts them
        asked = os.environ.get("JAX_PLATFORMS", "")
        return f"JAX cannot start on JAX_PLATFORMS={asked!r}: {text.partition(chr(10))[0] or 'it is not here'}; see jaxeff env"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"not enough memory: {text.splitlines()[0] if text else 'none is left'}; a smaller model, batch or length needs less"
    return None


def _streams() -> None:
    """A process of our own writes UTF-8 whatever its locale is, and what goes to a closed stream not into the next file opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if not sys.flags.utf8_mode and locale.getpreferredencoding(False).lower().replace("-", "") != "utf8":
        # Libraries read and write their files by the locale's encoding, which cannot be changed later on.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "jaxeff.cli", *sys.argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def _refuse(text: str) -> int:
    warn(f"error: {text}")
    return 2
