"""The run that `soak.py` disturbs: its command, its folders, and what can be seen of it from outside."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxeff.train.workdir import read_metrics

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds, until something that must happen counts as never happening
TMPFS_BYTES = 96 << 20
SAVE_EVERY = 10

CONFIG = """
from jaxeff.data import Bytes, TextData
from jaxeff.data.grammar import Grammar
from jaxeff.mixers import GQA, MLP
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim


def config():
    block = Block(GQA(n_heads=4, n_kv_heads=2, head_dim=8), MLP(d_hidden=64))
    return Experiment(
        model=LM(vocab_size=259, d_model=32, stages=(Stage((block,), 2),)),
        data=TextData(source=Grammar(n_documents=2000), tokenizer=Bytes(), seq_len=64, batch_size=8),
        optim=Optim(lr=1e-2, ema=0.9),
        train=Train(steps=STEPS, log_every=1, eval_every=100, save_every=SAVE_EVERY, keep=3, eval_batches=2),
    )
"""


@dataclass
class Process:
    """One start of the command."""

    popen: subprocess.Popen
    number: int
    log: Path

    def over(self) -> bool:
        """Whether it has ended."""
        return self.popen.poll() is not None

    @property
    def out(self) -> str:
        """Its stdout by now."""
        return Path(f"{self.log}.out").read_text(errors="replace")

    @property
    def err(self) -> str:
        """Its stderr by now."""
        return Path(f"{self.log}.err").read_text(errors="replace")

    def until(self, happened: Callable[[], bool]) -> bool:
        """Waits until something is true; False where the process ends before. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE
        while not happened():
            if self.over():
                return False
            if time.monotonic() > end:
                raise TimeoutError(f"nothing happened for {PATIENCE:.0f} s; see {self.log}.*")
            time.sleep(0.002)
        return True


class Run:
    """A run in `folder/NAME`: `work` is its workdir, `cache` the cache of its data."""

    def __init__(self, folder: Path, name: str, steps: int, rng: random.Random):
        self.folder, self.place, self.steps, self.rng = folder, folder / name, steps, rng
        self.work, self.cache, self.filling = self.place / "work", self.place / "cache", self.place / "filling"
        self.n_starts, self.mounted = 0, False
        self.place.mkdir(parents=True)
        (folder / "logs").mkdir(exist_ok=True)
        (folder / "config.py").write_text(
            CONFIG.replace("=STEPS", f"={steps}").replace("=SAVE_EVERY", f"={SAVE_EVERY}")
        )

    @property
    def words(self) -> list[str]:
        """The command, always the same."""
        return [
            sys.executable,
            "-m",
            "jaxeff.cli",
            "train",
            str(self.folder / "config.py"),
            "--workdir",
            str(self.work),
        ]

    def start(self, compiled: bool = True, preexec_fn=None, **env: str) -> Process:
        """Starts the command. compiled: whether programs compiled by earlier starts may be used."""
        self.n_starts += 1
        log = self.folder / "logs" / f"{self.place.name}-{self.n_starts:04d}"
        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAXEFF_CACHE": str(self.cache),
            "TMPDIR": str(self.place),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            **({"JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled")} if compiled else {}),
            **env,
        }
        with open(f"{log}.out", "w") as out, open(f"{log}.err", "w") as err:
            popen = subprocess.Popen(
                self.words,
                env=env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                preexec_fn=preexec_fn,
            )
        return Process(popen, self.n_starts, log)

    def mount(self) -> bool:
        """A small file system in memory for workdir and cache, where that is permitted."""
        words = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(self.place)]
        try:
            self.mounted = subprocess.run(words, capture_output=True).returncode == 0
        except OSError:
            self.mounted = False
        return self.mounted

    def unmount(self) -> None:
        """Keeps what is there beside it."""
        if self.mounted:
            shutil.copytree(self.place, self.folder / f"{self.place.name}-in-the-end", dirs_exist_ok=True)
            subprocess.run(["umount", str(self.place)], check=False)
            self.mounted = False

    def fill(self, left: int) -> None:
        """Leaves at most so many bytes on the small file system."""
        if not self.mounted:
            return
        free = os.statvfs(self.place)
        more = free.f_bavail * free.f_frsize - left
        with open(self.filling, "ab") as file, contextlib.suppress(OSError):  # the run has been faster
            if more > 0:
                os.posix_fallocate(file.fileno(), file.tell(), more)

    def saved(self) -> list[int]:
        """Steps whose checkpoints are finished, ascending: Orbax gives a folder its final name last."""
        return sorted(int(path.name) for path in (self.work / "checkpoints").glob("*") if path.name.isdigit())

    def saving(self) -> bool:
        """Whether a checkpoint is being written just now."""
        return any(not path.name.isdigit() for path in (self.work / "checkpoints").glob("*"))

    def checkpoint(self, step: int) -> Path:
        """A checkpoint's folder."""
        return self.work / "checkpoints" / f"{step:08d}"

    def lines(self) -> list[dict]:
        """Of metrics.jsonl."""
        return read_metrics(self.work)

    def step(self) -> int:
        """The last step with a line."""
        return max((line["step"] for line in self.lines()), default=0)

    def size(self) -> int:
        """Bytes of metrics.jsonl: cheaper to look at than its lines."""
        path = self.work / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def checksum(self) -> dict:
        """What the record of the last step's checkpoint says of its arrays."""
        return json.loads((self.checkpoint(self.steps) / "record" / "metadata").read_text())["checksum"]

    def litter(self) -> list[str]:
        """Temporary files and folders that nobody needs any more."""
        parts = ("*/.partial-*", "checkpoints/*tmp*", ".*.json.*", ".*.jsonl.*", "data/.*")
        found = [path for part in parts for place in (self.work, self.cache) for path in place.glob(part)]
        return sorted(str(path.relative_to(self.place)) for path in found)
