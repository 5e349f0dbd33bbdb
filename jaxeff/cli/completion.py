"""`jaxeff completion`: a script by which a shell completes commands, options and files.

It is made from the parsers themselves, those of the benchmarks too.
"""

import argparse
import dataclasses

from jaxeff.core.errors import lookup

FILES, FOLDERS = "files", "folders"
# What is completed where an argument's parser says nothing else: by the name of its value.
BY_METAVAR = {
    "CONFIG": FILES, "FILE": FILES, "PATH": FILES,
    "A": FOLDERS, "B": FOLDERS, "DIR": FOLDERS, "FOLDER": FOLDERS, "SRC": FOLDERS, "DST": FOLDERS,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Argument:
    """An option, or a place when it has no names. values: FILES, FOLDERS, the words that it may be, "" for others, None where it
    takes none. many: whether it may be given again."""

    names: tuple[str, ...]
    help: str
    values: str | tuple[str, ...] | None
    metavar: str
    many: bool


@dataclasses.dataclass(frozen=True)
class Command:
    """What may follow the words of a command."""

    words: tuple[str, ...]
    help: str
    options: tuple[Argument, ...]
    places: tuple[Argument, ...]
    inner: tuple["Command", ...]

    def all(self) -> list["Command"]:
        """It and all that are within it."""
        return [self, *(found for command in self.inner for found in command.all())]


def tree(parser: argparse.ArgumentParser, words: tuple[str, ...] = (), help: str = "") -> Command:
    """What a parser takes, its subcommands within."""
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    inner = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    plain = [action for action in actions if action not in inner and action.nargs != argparse.REMAINDER]
    return Command(
        words,
        help,
        tuple(_argument(action) for action in plain if action.option_strings),
        tuple(_argument(action) for action in plain if not action.option_strings),
        tuple(
            tree(action.choices[shown.dest], (*words, shown.dest), _text(shown.help))
            for action in inner
            for shown in action._choices_actions
        ),
    )


def whole() -> Command:
    """What `jaxeff` takes."""
    from jaxeff.cli import bench, parser

    top = tree(parser())
    return dataclasses.replace(top, inner=tuple(_with_benchmarks(command, bench.inner()) for command in top.inner))


def _with_benchmarks(command: Command, parser: argparse.ArgumentParser) -> Command:
    return tree(parser, command.words, command.help) if command.words == ("bench",) else command


def _argument(action: argparse.Action) -> Argument:
    many = isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*")
    metavar = action.metavar or action.dest.upper()
    return Argument(tuple(action.option_strings), _text(action.help), _values(action, metavar), metavar, many)


def _values(action: argparse.Action, metavar: str) -> str | tuple[str, ...] | None:
    if action.nargs == 0:
        return None
    stated = getattr(action, "completes", action.choices)
    return BY_METAVAR.get(metavar, "") if stated is None else tuple(stated)


def _text(help: str | None) -> str:
    return (help or "").replace("%%", "%")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    place = parser.add_argument("shell", metavar="SHELL", help="bash, zsh or fish; the script goes to standard output")
    place.completes = ("bash", "zsh", "fish")


def run(args: argparse.Namespace) -> None:
    """Does it."""
    from jaxeff.cli.shells import SHELLS

    write = lookup(SHELLS, args.shell, "shell")
    print(write(whole()), end="")
