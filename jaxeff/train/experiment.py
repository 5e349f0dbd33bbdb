"""One run as a value: a tree of frozen dataclasses."""

import dataclasses
from typing import Any, Literal

from jaxeff.core.fields import check
from jaxeff.core.precision import POLICIES, Policy
from jaxeff.core.sharding import make_mesh
from jaxeff.data import Data, TextData
from jaxeff.models.lm import LM
from jaxeff.objectives import Causal, Objective
from jaxeff.train import lomo
from jaxeff.train.optim import Optim
from jaxeff.train.weights import Weights
from jaxeff.transforms.plan import Transform


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices along each mesh axis, and of `data` and `fsdp` in how many parts they lie in different slices; see
    `jaxeff.core.sharding.make_mesh`."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    dcn_data: int = 1
    dcn_fsdp: int = 1

    def make(self, devices=None):
        """The mesh. Raises UserError when it is larger than the machine."""
        return make_mesh(**dataclasses.asdict(self), devices=devices)


LARGEST = 2**31 - 1  # steps are counted in int32


@dataclasses.dataclass(frozen=True)
class Train:
    """Length and rhythm of a run, all in optimizer steps.

    accumulate: micro-batches a batch is computed in. log_every, eval_every, save_every: None for never (the last step is always
    evaluated and saved). eval_batches: how much of the validation split, None for all of it. keep: newest checkpoints kept beside
    the best one (by the objective's score, among those saved at an evaluated step). max_bad_steps: non-finite steps in a row after
    which the run stops. init_from: the workdir of another run whose weights this one starts with. tensorboard: also write
    event files (needs `jaxeff[tensorboard]`). wandb: also write a run of Weights & Biases, offline unless WANDB_MODE says otherwise
    (needs `jaxeff[wandb]`).
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
    wandb: bool = False

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
            if value is not None and value > LARGEST:
                raise ValueError(f"Train.{name} must be at most {LARGEST}, found {value}")


# Fields that change neither the numbers nor their order: a run may go on with other values of these.
FREE = ("mesh.", "base", "data.source.paths", "train.log_every", "train.eval_every", "train.save_every", "train.eval_batches",
        "train.keep", "train.max_bad_steps", "train.tensorboard", "train.wandb")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of a run.

    transforms: what the model's weights become (see `jaxeff.transforms`). trainable: rules for the weights that train, None for
    what the transforms leave. base: the workdir of a run whose weights are those that are transformed; None: initial values.
    """

    model: LM
    data: Data = TextData()
    objective: Objective = Causal()
    transforms: tuple[Transform, ...] = ()
    trainable: tuple[str, ...] | None = None
    base: str | None = None
    optim: Optim = Optim()
    train: Train = Train()
    mesh: MeshShape = MeshShape()
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0

    def __post_init__(self):
        check(self)
        lomo.check(self)
        self.weights.trains("")
        if self.train.init_from is not None and (self.transforms or self.trainable is not None):
            raise ValueError(
                "train.init_from starts all weights from another run; with transforms or trainable, set base instead"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"Experiment.seed must lie in 0..2**32-1, found {self.seed}")

    @property
    def policy(self) -> Policy:
        """The dtypes of `precision`."""
        return POLICIES[self.precision]

    @property
    def specs(self) -> Any:
        """The Specs of all weights of the run."""
        return self.weights.specs

    @property
    def weights(self) -> Weights:
        """Which weights there are, and which of them train."""
        return Weights(self.model, self.transforms, self.trainable)
