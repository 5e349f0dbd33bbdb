"""What a workdir remembers beside its checkpoints, and who may write to it.

run.json         resolved config, package versions, git state, device, fingerprint of the corpus; one entry per start
metrics.jsonl    one object per logged step, each step once
lock             held by the process that trains here
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxeff.core.errors import UserError
from jaxeff.core.files import refusals, write_text
from jaxeff.train.circumstances import circumstances
from jaxeff.train.config_json import check_fields, diff, from_json, to_json
from jaxeff.train.experiment import FREE, Experiment
from jaxeff.train.run_files import read_metrics, read_run
from jaxeff.train.storage import place


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[Callable[[], None]]:
    """Exclusive use of a workdir, made if need be; the system ends it however the process ends. Yields a function that raises
    UserError when the folder was removed or replaced meanwhile: what is written to it would be lost.

    Raises UserError when another process has it, or the folder cannot be made or written to.
    """
    new = not os.path.exists(workdir)
    with refusals(workdir):
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # such as in /proc
            raise UserError(f"{workdir} cannot be made: folders cannot be made there") from None
        file = open(workdir / "lock", "a+")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip()
            raise UserError(f"{workdir} is in use by another process{f' (pid {owner})' if owner else ''}") from None
        with refusals(workdir):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()

        def check():
            try:
                same = os.path.samestat(os.stat(workdir / "lock"), os.fstat(file.fileno()))
            except FileNotFoundError:
                same = False
            if not same:
                raise UserError(f"{workdir} was removed or replaced while it was in use: what was done since is lost")

        try:
            yield check
        finally:
            _clear(workdir, new)


def _clear(workdir: Path, new: bool) -> None:
    """A start that has written nothing leaves a folder as it was: empty, or not there when it is `new`."""
    with contextlib.suppress(OSError):  # they hold something
        (workdir / "checkpoints").rmdir()
    with contextlib.suppress(OSError):
        if os.listdir(workdir) == ["lock"]:
            (workdir / "lock").unlink()
            if new:
                workdir.rmdir()


def trained(workdir) -> bool:
    """Whether a workdir holds anything of a run: a logged step or a checkpoint."""
    return bool(read_metrics(workdir)) or any(place(workdir).checkpoints.glob("[0-9]*"))


def stored_experiment(workdir) -> Experiment:
    """The experiment that was trained in `workdir`, made of types that are already there: nothing stored is run.

    Raises UserError when there is none, or when it names a type that is not there.
    """
    run = read_run(workdir)
    if run is None:
        raise UserError(
            f"{workdir} holds no training run (no run.json); train first: jaxeff train CONFIG --workdir {workdir}"
        )
    try:
        experiment = from_json(run["config"])
    except UserError as error:
        raise UserError(f"{workdir}/run.json: {error}") from None
    if not isinstance(experiment, Experiment):
        raise UserError(f"{workdir}/run.json: its config is of no Experiment")
    return experiment


def check_config(run: dict[str, Any], experiment: Experiment, workdir):
    """Raises UserError when a workdir's run is of another config; the message lists the fields that differ. A run that is finished
    may become longer."""
    changed = [found for found in diff(run["config"], to_json(experiment)) if not found[0].startswith(FREE)]
    if [path for path, _, _ in changed] == ["train.steps"]:
        _, before, now = changed[0]
        last = max((line["step"] for line in read_metrics(workdir)), default=0)
        if last == before < now:
            return
        raise UserError(
            f"{workdir} belongs to a run of {before} steps, of which {last} are done: a schedule is for the whole of a run, so"
            f" only a finished one may become longer, and none shorter; leave train.steps at {before}, or use another workdir"
        )
    if changed:
        check_fields(run["config"])
        shown = ", ".join(f"{path}: {old!r} there, {new!r} now" for path, old, new in changed[:6])
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise UserError(f"{workdir} belongs to a run with another config ({shown}{more}); use another workdir")


def check_corpus(run: dict[str, Any], fingerprint: str, workdir):
    """Raises UserError when the corpus or its tokenizer is another one by now."""
    if run["corpus"] != fingerprint:
        raise UserError(
            f"{workdir} was trained on another corpus (fingerprint {run['corpus'][:12]} there, {fingerprint[:12]} now):"
            " the text or its tokenizer changed; use another workdir"
        )


def describe(experiment: Experiment, prepared, mesh) -> dict[str, Any]:
    """A new run.json."""
    return {
        "config": to_json(experiment),
        "corpus": prepared.fingerprint,
        "data": prepared.statistics,
        "starts": [circumstances(0, mesh)],
    }


class Metrics:
    """metrics.jsonl: lines are appended whole; those of steps after `step`, which will be done again, are dropped first.

    every: of how many steps one has a line, None for none of them. warn: told of lines that cannot be read, and of those that are
    not there.
    """

    def __init__(
        self, workdir: Path, step: int, every: int | None = None, warn: Callable[[str], None] = lambda text: None
    ):
        self.path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir, warn) if line["step"] <= step]
        last = max((line["step"] for line in kept), default=0)
        if every is not None and last < step // every * every:
            warn(f"{self.path} has no lines of steps {last + 1} to {step}: training goes on without them")
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        with refusals(workdir):
            self._file = open(self.path, "a")  # noqa: SIM115

    def write(self, line: dict[str, Any]):
        """Appends one object."""
        with refusals(self.path.parent):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self):
        """Closes the file."""
        self._file.close()
