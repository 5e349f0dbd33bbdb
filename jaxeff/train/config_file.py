"""Config files: Python files with a function that returns a value.

configs/quickstart.py        def config() -> Experiment
load(path)                   the Experiment of a file
"""

import hashlib
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from jaxeff.core.errors import UserError, nearest
from jaxeff.train.experiment import Experiment

# How the modules are called that config files become.
CONFIG_MODULE = "jaxeff_config_"


def load(path) -> Experiment:
    """The Experiment that a config file's `config()` returns.

    Raises UserError, naming file and line, when the file is absent, cannot be compiled, fails, or returns something else.
    """
    experiment = call(path, "config")
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path}: config() must return an Experiment, found {type(experiment).__name__}")
    return experiment


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
    with _Blame(path):
        return getattr(module, function)()


def _module(path: Path) -> types.ModuleType:
    # Named by its content: dataclasses look their module up in sys.modules, and two files may share a stem.
    try:
        source = path.read_text(encoding="utf-8")
        code = compile(source, str(path), "exec")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from None
    module = types.ModuleType(CONFIG_MODULE + hashlib.sha256(source.encode()).hexdigest()[:16], path.name)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    with _Blame(path):
        exec(code, module.__dict__)
    return module


class _Blame:
    """Turns an error that the config file causes into a UserError with its line; the library's own errors pass."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if not isinstance(error, Exception):
            return
        frames = traceback.extract_tb(trace)
        lines = [frame.lineno for frame in frames if frame.filename == str(self.path)]
        # A ValueError of ours speaks of the values it was given; any other error is the file's own if raised in it, or
        # while calling one of our constructors with arguments that it does not have.
        if lines and (isinstance(error, (ValueError, ImportError)) or frames[-1].filename == str(self.path)):
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise UserError(f"{self.path}:{lines[-1]}: {kind}{error}") from None
