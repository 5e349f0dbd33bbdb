"""The finished parts of an ablation on disk, so that an interrupted one goes on with what is missing.

    WORKDIR/ablation.json             what this folder is for: the resolved ablation, corpus, versions, device
    WORKDIR/units/gqa/seed-0.json     one finished part: {"key", "experiment", "result", "finished"}
    WORKDIR/runs/gqa/seed-0/          the training run itself, a workdir of `jaxeff train`

A part's key is a hash of all that decides its numbers. A folder belongs to one ablation: another one is refused with the
fields in which the two differ, and a part whose key is not the expected one is never read.
"""

import datetime
import json
from pathlib import Path
from typing import Any

from jaxeff.core.errors import UserError
from jaxeff.core.files import write_json, write_text
from jaxeff.train.config_json import diff


class Units:
    """The parts in one folder. Raises UserError when the folder belongs to an ablation that is not `identity`, or to
    a training run."""

    def __init__(self, workdir: str | Path, identity: dict[str, Any]):
        self.workdir = Path(workdir)
        if (self.workdir / "run.json").exists():
            raise UserError(f"{workdir} holds a training run; use another workdir")
        lock = self.workdir / "ablation.json"
        if lock.exists():
            _refuse_other(lock, identity)
        else:
            write_json(lock, identity)

    def get(self, model: str, part: str, key: str) -> Any | None:
        """The result of a part, None when it is not finished, damaged, or was made by something else."""
        return self._read(model, part, key).get("result")

    def finished(self, model: str, part: str, key: str) -> str | None:
        """When a part was finished, in UTC as ISO 8601 writes it; None where `get` finds none or the time was not kept."""
        return self._read(model, part, key).get("finished")

    def _read(self, model: str, part: str, key: str) -> dict[str, Any]:
        try:
            stored = json.loads(self._path(model, part).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}
        return stored if isinstance(stored, dict) and stored.get("key") == key else {}

    def put(self, model: str, part: str, key: str, experiment: Any, result: Any) -> None:
        """Keep the result of a finished part."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        body = {"key": key, "finished": now, "result": result, "experiment": experiment}
        write_text(self._path(model, part), json.dumps(body, indent=1, allow_nan=False) + "\n")

    def run_dir(self, model: str, part: str) -> Path:
        """Where the part's training run lies."""
        return self.workdir / "runs" / model / part

    def _path(self, model: str, part: str) -> Path:
        return self.workdir / "units" / model / f"{part}.json"


def _refuse_other(lock: Path, identity: dict[str, Any]) -> None:
    try:
        there = json.loads(lock.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{lock} cannot be read ({error}); choose another --workdir") from None
    differing = diff(there, json.loads(json.dumps(identity)))
    if differing:
        shown = "; ".join(f"{path}: {old!r} there, {new!r} now" for path, old, new in differing[:6])
        more = f"; and {len(differing) - 6} more" if len(differing) > 6 else ""
        raise UserError(
            f"{lock.parent} holds another ablation ({shown}{more}): choose another --workdir, or delete that one"
        )
