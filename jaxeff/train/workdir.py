"""The folder of one run: whose it is, what it holds, and that one process at a time writes it.

    DIR/run.json          the resolved config, versions, git state, device, corpus fingerprint
    DIR/metrics.jsonl     one object a logged step
    DIR/checkpoints/      see `jaxeff.train.checkpoint`
    DIR/lock              held while a process trains here
"""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from jaxeff import __version__
from jaxeff.core.errors import UserError
from jaxeff.train.checkpoint import refusals
from jaxeff.train.experiment import FREE, Experiment, diff, from_json, to_json

RUN, METRICS, LOCK = "run.json", "metrics.jsonl", "lock"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece", "grain", "tensorflow-datasets")


def write_json(path: Path, data: Any) -> None:
    """All of the file or nothing of it."""
    with refusals(path.parent):
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)


@contextlib.contextmanager
def locked(workdir: Path):
    """Makes the folder and holds its lock. Raises UserError when another process holds it, or it cannot be written."""
    with refusals(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        handle = open(workdir / LOCK, "a+", encoding="utf-8")
    with handle:
        try:
            # The kernel lets go of it when the process ends, however it ends.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise UserError(f"{workdir} is in use by another process (pid {owner})") from None
        with refusals(workdir):
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
        yield


def claim(workdir: Path, experiment: Experiment, fingerprint: str) -> None:
    """Writes run.json into a fresh folder, or checks that the folder is this experiment's.

    Raises UserError that lists the differing fields when it is another's, or when the corpus has changed.
    """
    path = workdir / RUN
    if not path.exists():
        if any((workdir / "checkpoints").glob("*")):
            raise UserError(f"{workdir} holds checkpoints but no {RUN}: choose an empty folder")
        write_json(path, describe(experiment, fingerprint))
        return
    record = read(workdir)
    changed = [(name, old, new) for name, old, new in diff(record["config"], experiment) if not name.startswith(FREE)]
    if changed:
        fields = "; ".join(f"{name}: {old!r} there, {new!r} here" for name, old, new in changed)
        raise UserError(f"{workdir} belongs to another config: {fields}")
    if record["corpus"] != fingerprint:
        raise UserError(
            f"{workdir} was trained on another text (fingerprint {record['corpus'][:12]} there, {fingerprint[:12]} here):"
            " the files, the Python version or the tokenizer changed"
        )


def read(workdir) -> dict[str, Any]:
    """run.json. Raises UserError when there is none or it is damaged."""
    path = Path(workdir) / RUN
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{workdir} is no run: it has no {RUN}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror.lower()}") from None


def stored(workdir) -> Experiment:
    """The experiment that a folder belongs to."""
    return from_json(read(workdir)["config"])


def describe(experiment: Experiment, fingerprint: str) -> dict[str, Any]:
    """What run.json says: enough to know later what made the numbers."""
    return {
        "config": to_json(experiment),
        "corpus": fingerprint,
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"jaxeff": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": git(),
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "host": platform.platform(),
            "cores": os.cpu_count(),
        },
    }


def git() -> dict[str, Any] | None:
    """Commit of the working folder and whether it has uncommitted changes; None outside a repository."""

    def ask(*words):
        return subprocess.run(("git", *words), capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


class Metrics:
    """metrics.jsonl: lines are appended and flushed; what lies beyond `step`, or was cut off by a kill, is taken back first."""

    def __init__(self, workdir: Path, step: int):
        self.path = workdir / METRICS
        self.lines = [line for line in self._intact() if line["step"] <= step]
        with refusals(workdir):
            partial = self.path.with_name(METRICS + ".partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
            os.replace(partial, self.path)
            self._file = open(self.path, "a", encoding="utf-8")

    def _intact(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError, TypeError, KeyError):
                lines.append(line := json.loads(text))
                line["step"]
        return [line for line in lines if isinstance(line, dict) and "step" in line]

    def append(self, line: dict[str, Any]) -> None:
        """One object, on disk as far as a kill is concerned."""
        self.lines.append(line)
        with refusals(self.path.parent):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()
