"""Config files: Python files with a function that returns a value.

configs/quickstart.py        def config() -> Experiment
load(path)                   the Experiment of a file
"""

import ast
import contextlib
import dataclasses
import hashlib
import inspect
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from jaxeff.core.errors import UserError, nearest
from jaxeff.core.fields import a, check
from jaxeff.train.experiment import Experiment

# How the modules are called that config files become.
CONFIG_MODULE = "jaxeff_config_"


def load(path) -> Experiment:
    """The Experiment that a config file's `config()` returns.

    Raises UserError, naming file and line, when the file is absent, cannot be compiled, fails, or returns something else.
    """
    return returned(path, "config", Experiment)


def returned(path, function: str, cls: type) -> Any:
    """What `function()` of the Python file `path` returns, which is to be a `cls`; raises as `load` does."""
    found = call(path, function)
    if not isinstance(found, cls):
        shown = f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
        raise UserError(f"{path}: {function}() must return {a(cls.__name__)}, found {shown}")
    return found


def call(path, function: str) -> Any:
    """What `function()` of the Python file `path` returns; see `load` for what it raises."""
    path = Path(path)
    if not path.is_file():
        there = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        raise UserError(f"no config file {path}" + (f"; {nearest(str(path), there)}" if there else ""))
    module = _module(path)
    if not callable(getattr(module, function, None)):
        defined = [name for name, value in vars(module).items() if isinstance(value, types.FunctionType)]
        raise UserError(f"{path} defines no function {function}(); {nearest(function, defined)}")
    needed = [name for name, p in inspect.signature(getattr(module, function)).parameters.items() if _is_needed(p)]
    if needed:
        raise UserError(f"{path}: {function}() is called without arguments, and takes {', '.join(needed)}")
    with _Blame(path), _beside(path):
        return getattr(module, function)()


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


@contextlib.contextmanager
def _beside(path: Path):
    """What lies beside a config file can be imported from it, unless something else has that name."""
    folder = str(path.resolve().parent)
    sys.path.append(folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _module(path: Path) -> types.ModuleType:
    # Named by what it does, comments left out: dataclasses look their module up in sys.modules, two files may share a stem, and a
    # run whose classes do something else is another run.
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        code = compile(tree, str(path), "exec")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from None
    except ValueError as error:  # a null byte
        raise UserError(f"{path}: {error}") from None
    module = types.ModuleType(CONFIG_MODULE + hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], path.name)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    with _Blame(path), _beside(path):
        exec(code, module.__dict__)
    return module


class _Blame:
    """Turns an error that the config file causes into a UserError with its line; the library's own errors pass."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, SystemExit):
            raise UserError(f"{self.path}: it ends the program ({error!r}) where it should return a value") from None
        if not isinstance(error, Exception):
            return
        frames = traceback.extract_tb(trace)
        lines = [frame.lineno for frame in frames if frame.filename == str(self.path)]
        if not lines:
            return
        # A ValueError of ours speaks of the values it was given; any other error is the file's own if raised in it, or
        # while calling one of our constructors with arguments that it does not have, or that are of other types.
        mistyped = None if isinstance(error, ValueError) else _mistyped(trace)
        if mistyped or isinstance(error, (ValueError, ImportError)) or frames[-1].filename == str(self.path):
            kind = "" if isinstance(error, ValueError) or mistyped else f"{type(error).__name__}: "
            raise UserError(f"{self.path}:{lines[-1]}: {kind}{mistyped or error}") from None


def _mistyped(trace) -> str | None:
    """What is wrong with the fields of the value that was being made when an error arose, None where they are of their types."""
    for frame, _ in traceback.walk_tb(trace):
        value = frame.f_locals.get("self")
        if frame.f_code.co_name == "__post_init__" and dataclasses.is_dataclass(value):
            try:
                check(value, type(value).__name__)
            except UserError as error:
                return str(error)
    return None
