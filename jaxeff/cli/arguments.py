"""Options that several commands have in common, and what they stand for."""

import argparse
import math
import os
from collections.abc import Callable

from jaxeff.core.address import address
from jaxeff.core.errors import UserError
from jaxeff.core.processes import WAIT, start


class Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong; the parsers of its subcommands are of its kind."""

    def error(self, message: str):
        """Ends the process."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def folder(text: str) -> str:
    """A folder's name as an argument; a leading ~ is a home folder, as shells have it where it stands alone."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a folder must have a name")
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise argparse.ArgumentTypeError(f"there is no home folder {text.partition('/')[0]}")
    if _address(found) is not None:
        raise argparse.ArgumentTypeError(f"{text} is in a store, and this is for folders of this machine only")
    return found


def place(text: str) -> str:
    """A folder's name, or an address in a store, as an argument."""
    return _address(text) or folder(text)


def _address(text: str) -> str | None:
    try:
        return address(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seed(text: str) -> int:
    """A seed as an argument."""
    if not text.strip().isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"a seed is a whole number in 0..2**32-1, found {text!r}")
    return int(text)


def whole(least: int):
    """A type of arguments: whole numbers from `least` on."""

    def number(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, found {text!r}")
        return int(text)

    return number


def span(text: str) -> tuple[int, int]:
    """The first and the last of some steps as an argument."""
    first, _, last = (part.strip() for part in text.partition(":"))
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(
            f"expected FIRST:LAST, two steps from 1 on in this order, 10:13, found {text!r}"
        )
    return int(first), int(last)


def seconds(text: str) -> float:
    """A time as an argument."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < 1e6:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, found {text!r}")
    return found


def processes(parser: argparse.ArgumentParser) -> None:
    """--coordinator, --processes, --process and --wait"""
    several = parser.add_argument_group(
        "several processes", "started once on each host with these; on TPU pods, under SLURM and Open MPI without"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    several.add_argument("--processes", type=whole(1), metavar="N", help="how many there are")
    several.add_argument("--process", type=whole(0), metavar="I", help="which one this is, from 0 on")
    several.add_argument(
        "--wait", type=seconds, default=WAIT, metavar="SECONDS", help=f"for the others to come (default {WAIT:g})"
    )


def joined(args: argparse.Namespace) -> int:
    """Joins the processes that `processes` asked for; returns how many there are."""
    return start(args.coordinator, args.processes, args.process, args.wait)


def config(parser: argparse.ArgumentParser, what: str = "where it defines classes of its own") -> None:
    """--config"""
    parser.add_argument("--config", metavar="CONFIG", help=f"the config file {what}")


def workdir(
    parser: argparse.ArgumentParser, what: str = "folder of the run", several: bool = False, type: Callable = place
) -> None:
    """--workdir"""
    action = "append" if several else "store"
    parser.add_argument("--workdir", required=True, action=action, type=type, metavar="DIR", help=what)


def workdir_or_public(parser: argparse.ArgumentParser, what: str = "folder of the run", several: bool = False) -> None:
    """--workdir or --model"""
    either = parser.add_mutually_exclusive_group(required=True)
    action = "append" if several else "store"
    either.add_argument("--workdir", action=action, type=place, metavar="DIR", help=what)
    either.add_argument("--model", metavar="hf:DIR", help="a public checkpoint instead")


def any_base(parser: argparse.ArgumentParser) -> None:
    """--any-base"""
    parser.add_argument(
        "--any-base", action="store_true", help="take frozen weights as they are, even if training saw others"
    )


def out(parser: argparse.ArgumentParser, what: str = "folder of the new run") -> None:
    """--out"""
    parser.add_argument("--out", required=True, type=folder, metavar="DIR", help=what)


def sampling(parser: argparse.ArgumentParser, temperature: float, tokens: int, top_p: float | None = None) -> None:
    """How text is sampled, and how much of it. top_p: where no other filter is asked for, and something is drawn."""
    parser.set_defaults(usual_top_p=top_p)
    usual = "" if top_p is None else f" (default {top_p:g}, unless another filter is given; 1 for none)"
    parser.add_argument(
        "--max-tokens", type=int, default=tokens, metavar="N", help=f"of an answer, at most (default {tokens})"
    )
    parser.add_argument(
        "--temperature", type=float, default=temperature, metavar="X", help=f"0 is greedy (default {temperature:g})"
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="among the N likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help=f"among the likeliest that have P together{usual}")
    parser.add_argument(
        "--min-p", type=float, metavar="P", help="among those with P times the likeliest one's probability"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of what is drawn (default 0)")


def sampled(args: argparse.Namespace) -> dict:
    """What `sampling` asked for, as `models.generate` takes it."""
    import jax

    options = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    if args.temperature > 0 and options["top_k"] is options["top_p"] is options["min_p"] is None:
        options["top_p"] = args.usual_top_p
    return options | {"key": jax.random.key(args.seed)}


def public(name: str) -> str:
    """The name of a public checkpoint, as it is."""
    if not name.startswith("hf:"):
        raise UserError(f"--model {name}: a public checkpoint is named hf:DIR; a run of jaxeff: --workdir {name}")
    return name


def encodable(text: str) -> str:
    """Text that was typed, as it is."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError("the prompt is not UTF-8")
    return text


def define(config: str | None) -> None:
    """Makes the classes of a config file known; nothing that a workdir holds is ever run."""
    if config is not None:
        from jaxeff.train.config_file import load

        load(config)
