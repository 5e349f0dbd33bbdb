"""Where logged lines go beside metrics.jsonl: event files of TensorBoard, and runs of Weights & Biases. Both are extras."""

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

from jaxeff.core.errors import UserError
from jaxeff.train.experiment import Train

MODE = "WANDB_MODE"
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Writer(Protocol):
    """Takes logged lines until it is closed."""

    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def check_packages(train: Train) -> None:
    """Raises UserError where a package that a run asks for is missing."""
    for name, package in PACKAGES.items():
        if getattr(train, name):
            try:
                importlib.import_module(package)
            except ImportError:
                raise UserError(
                    f"train.{name}=true needs the package {package}: pip install 'jaxeff[{name}]'"
                ) from None


def writers(train: Train, workdir: Path, run: dict[str, Any], step: int) -> list[Writer]:
    """Those that a run asks for. run: the content of run.json. step: the last one that was done before this start. Raises UserError
    where Weights & Biases refuses."""
    events = [Events(workdir, step)] if train.tensorboard else []
    return [*events, *([WandB(workdir, run)] if train.wandb else [])]


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """What of a line can be drawn over the steps."""
    return {name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)}


class Events:
    """Event files in the folder `tensorboard` of the run; those of steps after `step`, which will be done again, are void."""

    def __init__(self, workdir: Path, step: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self.close = self.writer.close

    def write(self, line: dict[str, Any]) -> None:
        """Takes a logged line."""
        for name, value in numbers(line).items():
            self.writer.add_scalar(name, value, line["step"])


class WandB:
    """A run of Weights & Biases in the folder `wandb` of the run, which `wandb sync` uploads; nothing leaves the machine before,
    unless WANDB_MODE says so. All starts of a run are one run there; a step that is done again has the same numbers."""

    def __init__(self, workdir: Path, run: dict[str, Any]):
        import wandb

        mode = os.environ.get(MODE) or "offline"
        identity = hashlib.sha256(json.dumps(run["starts"][0], sort_keys=True).encode()).hexdigest()[:16]
        try:
            self.run = wandb.init(
                dir=str(workdir),
                project=os.environ.get("WANDB_PROJECT") or "jaxeff",
                name=workdir.resolve().name,
                id=identity,
                resume=None if mode == "offline" else "allow",  # offline, the id alone makes starts one run
                config=run["config"],
                mode=mode,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(f"Weights & Biases ({MODE}={mode}): {error}") from None
        self.close = self.run.finish

    def write(self, line: dict[str, Any]) -> None:
        """Takes a logged line."""
        self.run.log(numbers(line), step=line["step"])
