"""One run as a value: a tree of frozen dataclasses, loaded from a Python file, written to JSON and read back.

configs/quickstart.py        def config() -> Experiment
load(path)                   the Experiment of a file
override(e, ["a.b=c"])       see `jaxeff.train.overrides`
to_json(e), from_json(d)     the resolved config, as it lies beside the checkpoints
diff(a, b)                   the fields in which two of them differ
"""

import dataclasses
import functools
import hashlib
import importlib
import sys
import traceback
import types
from pathlib import Path
from typing import Any, Literal

from jaxeff.core.errors import UserError, lookup, nearest
from jaxeff.core.precision import POLICIES, Policy
from jaxeff.core.sharding import make_mesh
from jaxeff.data import Data
from jaxeff.models.lm import LM
from jaxeff.objectives.causal import Causal
from jaxeff.train.optim import Optim


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices along each mesh axis; see `jaxeff.core.sharding`."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1

    def make(self, devices=None):
        """The mesh. Raises UserError when it is larger than the machine."""
        return make_mesh(self.data, self.fsdp, self.tensor, self.sequence, devices)


@dataclasses.dataclass(frozen=True)
class Train:
    """Length and rhythm of a run, all in optimizer steps.

    accumulate: micro-batches a batch is computed in. log_every, eval_every, save_every: None for never (the last step is always
    evaluated and saved). eval_batches: how much of the validation split, None for all of it. keep: newest checkpoints kept beside
    the best one (by bits per byte, among those saved at an evaluated step). max_bad_steps: non-finite steps in a row after
    which the run stops. init_from: the workdir of another run whose weights this one starts with. tensorboard: also write
    event files (needs `jaxeff[tensorboard]`).
    """

    steps: int = 1000
    accumulate: int = 1
    log_every: int | None = 10
    eval_every: int | None = 100
    save_every: int | None = 100
    eval_batches: int | None = None
    keep: int = 2
    max_bad_steps: int = 20
    init_from: str | None = None
    tensorboard: bool = False

    def __post_init__(self):
        for name in (
            "steps",
            "accumulate",
            "log_every",
            "eval_every",
            "save_every",
            "eval_batches",
            "keep",
            "max_bad_steps",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Train.{name} must be at least 1, found {value}")


# Fields that change neither the numbers nor their order: a run may go on with other values of these.
FREE = ("mesh.", "train.log_every", "train.eval_every", "train.save_every", "train.eval_batches", "train.keep",
        "train.max_bad_steps", "train.tensorboard")  # fmt: skip


# How the modules are called that config files become.
CONFIG_MODULE = "jaxeff_config_"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of a run."""

    model: LM
    data: Data = Data()
    objective: Causal = Causal()
    optim: Optim = Optim()
    train: Train = Train()
    mesh: MeshShape = MeshShape()
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0

    def __post_init__(self):
        lookup(POLICIES, self.precision, "precision")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"Experiment.seed must lie in 0..2**32-1, found {self.seed}")

    @property
    def policy(self) -> Policy:
        """The dtypes of `precision`."""
        return POLICIES[self.precision]


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


def to_json(value) -> Any:
    """A config value as JSON data: a dataclass becomes a dict with its class under "type", a tuple a list."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise UserError(f"a config may hold dataclasses, tuples, numbers, strings and None; found {value!r}")


def from_json(data) -> Any:
    """The inverse of `to_json`. Raises UserError when a class is not there any more or has other fields."""
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    cls = _class(data.get("type", ""))
    fields = {name: from_json(item) for name, item in data.items() if name != "type"}
    try:
        return cls(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"the stored config does not fit {data['type']}: {error}") from None


@functools.cache
def _class(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    try:
        cls = getattr(sys.modules.get(module) or importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        raise UserError(f"the stored config names {name!r}, which cannot be imported here") from None
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"the stored config names {name!r}, which is no dataclass")
    return cls


def flatten(data, prefix: str = "") -> dict[str, Any]:
    """JSON data as dotted path -> leaf."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else None
    if items is None or not data:
        return {prefix: data}
    leaves = {}
    for key, item in items:
        leaves |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return leaves


MISSING = type("Missing", (), {"__repr__": lambda self: "(absent)"})()


def diff(a, b) -> list[tuple[str, Any, Any]]:
    """(path, value in a, value in b) for each field in which two experiments, or their JSON, differ."""
    left, right = (flatten(x if isinstance(x, dict) else to_json(x)) for x in (a, b))
    names = list(dict.fromkeys((*left, *right)))
    pairs = ((name, left.get(name, MISSING), right.get(name, MISSING)) for name in names)
    return [(name, x, y) for name, x, y in pairs if isinstance(x, bool) is not isinstance(y, bool) or x != y]
