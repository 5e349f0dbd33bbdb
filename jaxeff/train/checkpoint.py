"""Checkpoints of a run, by Orbax: asynchronous, atomic, sharded; the newest few and the best are kept.

    DIR/checkpoints/<step>/     one checkpoint: the state as flat path -> array, and a JSON record (data position, tokens, ...)
    DIR/damaged/<step>          what could not be read, moved aside
    DIR/frozen/                 weights that do not train, where they follow neither from the seed nor from the base

A checkpoint carries a checksum of its state, computed on the device as a sum of bits: independent of the mesh, and cheap
enough to verify at every restore; and one of its record.
"""

import dataclasses
import functools
import gc
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxeff.core.errors import UserError
from jaxeff.core.files import refusal, refusals
from jaxeff.core.tree import paths
from jaxeff.objectives.base import Score
from jaxeff.train.state import State
from jaxeff.train.storage import local, place

FROZEN = "frozen"


class Checkpoints:
    """The checkpoints of one workdir: the newest `keep` and the one with the best `score`, where one is given. They are their own
    preservation policy, as Orbax calls it.

    `read_only` neither creates nor tidies anything: for evaluation beside a running job.
    """

    def __init__(self, workdir, score: Score | None = None, keep: int = 2, read_only: bool = False):
        self.place = place(workdir)
        self.folder = self.place.checkpoints
        self.read_only, self.score, self.keep = read_only, score, keep
        _hush()
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            preservation_policy=self,
            step_format_fixed_length=8,
            async_options=_patience(),
        )
        # Weights hardly become smaller by compression, which would take time from the steps that run meanwhile.
        state = ocp.PyTreeCheckpointHandler(use_compression=False)
        handlers = {"state": state, "record": ocp.JsonCheckpointHandler()}
        with self.place.refusals():
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        self._scores = {step: self._score_of(step) for step in self._manager.all_steps()}

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax's question after each save: which of these, oldest first, are to stay."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep :], self._best(steps)}
        return [step in kept for step in steps]

    def save(self, step: int, state: State, record: dict[str, Any], score: float | None = None):
        """Starts writing; returns once the arrays are copied, before they are on disk.

        Frozen weights are not written: they follow from the seed or the base, or `write_frozen` has kept them. record: JSON-able.
        score: of an evaluation at this very step, if any. Raises UserError when an earlier write was refused by the file system.
        """
        kept = dataclasses.replace(state, frozen=None)
        leaves = paths(kept)
        record = sealed(record | {"checksum": checksums(kept), "shapes": _shapes(kept.params), "score": score})
        self._scores[step] = score
        self.place.settle()
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(leaves), record=ocp.args.JsonSave(record))
        with self.place.refusals():
            self._manager.save(step, args=args, force=True)
        self.place.send(self._manager.wait_until_finished)

    def restore(self, abstract: State, step: int) -> tuple[State, dict[str, Any]]:
        """State, without its frozen weights, and record of one checkpoint, laid out as `abstract` says, whatever mesh wrote it.

        Raises ValueError when its checksum is another, UserError when it is of another model; whatever Orbax raises when it cannot
        be read.
        """
        abstract = dataclasses.replace(abstract, frozen=None)
        self._check_shapes(step, abstract.params)
        target = paths(abstract)
        args = ocp.args.Composite(state=_wanted(target), record=ocp.args.JsonRestore())
        self.place.bring(step)
        found = self._manager.restore(step, args=args)
        leaves = [found["state"][path] for path in target]
        # Copied into buffers of our own: the step gives its input's buffers away.
        state = jax.tree.unflatten(jax.tree.structure(abstract), [jnp.copy(leaf) for leaf in leaves])
        record = opened(found["record"])
        record.pop("shapes", None)
        _compare(record.pop("checksum"), checksums(state))
        return state, record

    def restore_weights(self, abstract_params, step: int) -> tuple[Any, dict[str, Any]]:
        """(the trained weights to evaluate, averaged ones where there are, the record): nothing else of the checkpoint is read.

        abstract_params: their shapes, dtypes and shardings. Raises as `restore` does.
        """
        record = self._check_shapes(step, abstract_params)
        name = "ema" if "ema" in record["checksum"] else "params"
        target = {f"{name}/{path}": leaf for path, leaf in paths(abstract_params).items()}
        self.place.bring(step)
        found = _read(self._name(step) / "state", target)
        _compare({name: record["checksum"][name]}, checksums(found))
        return jax.tree.unflatten(jax.tree.structure(abstract_params), [found[path] for path in target]), record

    def restore_latest(self, abstract: State, note=None) -> tuple[int, State, dict[str, Any]] | None:
        """(step, state, record) of the newest readable checkpoint; None when there is none at all.

        Damaged ones are named through `note`, and moved aside once one is found to go on from. Raises UserError when all
        are damaged, or when the file system does not let them be read.
        """
        found = self.newest(lambda step: self.restore(abstract, step), note)
        if found is None:
            return None
        step, (state, record) = found
        self._set_aside([damaged for damaged in self.steps() if damaged > step])
        return step, state, record

    def newest(self, read: Callable[[int], Any], note=None) -> tuple[int, Any] | None:
        """(step, read(step)) for the newest checkpoint that can be read; None, and UserError, as for `restore_latest`."""
        steps = self.steps()
        for step in reversed(steps):
            found, reason = self._attempt(read, step)
            if reason is None:
                return step, found
            if note is not None:
                note(f"checkpoint {self._name(step)} is damaged ({reason}); trying the one before it")
        if steps:
            raise UserError(f"no checkpoint in {self.folder} can be read; start again in an empty folder")
        return None

    def _attempt(self, read: Callable[[int], Any], step: int) -> tuple[Any, str | None]:
        """(what was read, None), or (None, why it cannot be)."""
        with warnings.catch_warnings():
            # Where one array cannot be read, Orbax drops the reads of the others, and Python complains about each.
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                return read(step), None
            except (MemoryError, UserError):
                raise
            except Exception as error:
                if (refused := refusal(error)) is not None:
                    raise UserError(f"cannot read {self._name(step)}: {refused}") from error
                reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
            gc.collect()
            return None, reason

    def best(self) -> int | None:
        """The step with the best score among the checkpoints kept, the earliest of equal ones."""
        return self._best(self.steps())

    def _best(self, steps: Sequence[int]) -> int | None:
        scored = [step for step in steps if self._scores.get(step) is not None]
        return min(scored, key=lambda step: self.score.badness(self._scores[step])) if self.score and scored else None

    def _score_of(self, step: int) -> float | None:
        """None also where the record cannot be read: who restores it will be told."""
        try:
            return self._record(step).get("score")
        except (OSError, ValueError):
            return None

    def _check_shapes(self, step: int, abstract_params) -> dict[str, Any]:
        """The record. Raises UserError where the checkpoint holds other weights: the config was changed since."""
        record = self._record(step)
        here = _shapes(abstract_params)
        there = record.get("shapes", here)
        for path in {**there, **here}:
            if there.get(path) != here.get(path):
                raise UserError(
                    f"{self._name(step)} is of another model than the config: {path} is {there.get(path, 'absent')} there,"
                    f" {here.get(path, 'absent')} by the config"
                )
        return record

    def _record(self, step: int) -> dict[str, Any]:
        return opened(json.loads((self._name(step) / "record" / "metadata").read_text(encoding="utf-8")))

    def wait(self):
        """Returns when everything is on disk, or in the store. Raises UserError when it was refused."""
        self.place.settle()
        with self.place.refusals():
            self._manager.wait_until_finished()

    def close(self):
        """Waits, then stops the writing threads."""
        try:
            self.place.settle()
        finally:
            with self.place.refusals():
                self._manager.close()

    def _name(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    def _set_aside(self, steps: list[int]):
        if self.read_only or not steps:
            return
        with self.place.refusals():
            for step in steps:
                self.place.set_aside(self._name(step).name)
            self._manager.reload()


def _patience() -> ocp.AsyncOptions:
    """When a write counts as failed: never. Orbax takes the time by the wall clock, which may be set meanwhile, and it waits for
    folders that are made beside for some minutes at most. Of several processes one may wait in vain for another, and gives up."""
    seconds = 150 * 365 * 86400 if jax.process_count() == 1 else 1200
    return ocp.AsyncOptions(timeout_secs=seconds, create_directories_asynchronously=False)


def _shapes(params) -> dict[str, list[int]]:
    return {path: list(leaf.shape) for path, leaf in paths(params).items()}


def write_frozen(workdir, frozen):
    """Keeps the weights that do not train, for `read_frozen`."""
    _hush()
    folder = local(workdir).absolute() / FROZEN
    with refusals(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(folder, args=ocp.args.PyTreeSave(paths(frozen)), force=True)


def read_frozen(workdir, abstract_frozen) -> Any | None:
    """What `write_frozen` kept, None where it has kept nothing; raises whatever Orbax raises when it cannot be read."""
    folder = local(workdir).absolute() / FROZEN
    if not folder.exists():
        return None
    target = paths(abstract_frozen)
    found = _read(folder, target)
    return jax.tree.unflatten(jax.tree.structure(abstract_frozen), [found[path] for path in target])


def _read(folder: Path, target: dict[str, Any]) -> dict[str, jax.Array]:
    """The arrays of these paths, laid out as `target` says; no other is read."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(folder, args=_wanted(target, partial_restore=True))


def _wanted(target: dict[str, Any], **options) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(target, ocp.checkpoint_utils.construct_restore_args(target), **options)


@functools.cache
def _hush():
    """Only what Orbax raises is heard.

    It logs a failed write, with its traceback, in each thread that notices, and then raises it where it is waited for, where
    we turn it into one line. Writes that were still under way complain that nobody waits for them any more.
    """

    def heard(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        places = [record.pathname, *(frame.filename for frame in traceback.extract_tb(error and error.__traceback__))]
        return not any("orbax" in place for place in places)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(heard)
    before = sys.unraisablehook

    def hook(unraisable):
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook


@jax.jit
def _checksums(parts: dict[str, dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """uint32 sum of all bits of each part; addition modulo 2**32 does not care how arrays are cut into shards."""

    def bits(x):
        return jnp.sum(_words(x).astype(jnp.uint32), dtype=jnp.uint32)

    def one(leaves: dict[str, jax.Array]) -> jax.Array:
        # Weighted by place, so that two leaves that changed places are noticed.
        return sum((bits(leaf) * jnp.uint32(2 * i + 1) for i, leaf in enumerate(leaves.values())), jnp.uint32(0))

    return {name: one(leaves) for name, leaves in parts.items()}


def _words(x: jax.Array) -> jax.Array:
    """The bits of an array of any kind, as unsigned integers."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x)
    if x.dtype == jnp.bool_ or x.dtype in (jnp.int4, jnp.uint4):
        return x.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(
        x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    )


def checksums(tree) -> dict[str, int]:
    """A checksum for each top-level part of a state (params, opt, ema, ...), or of a tree of flat paths; {} of an empty one."""
    parts: dict[str, dict[str, jax.Array]] = {}
    for path, leaf in paths(tree).items():
        parts.setdefault(path.partition("/")[0], {})[path] = leaf
    return {name: int(value) for name, value in jax.device_get(_checksums(parts)).items()}


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with a checksum of its own."""
    return record | {"seal": _seal(record)}


def opened(record: dict[str, Any]) -> dict[str, Any]:
    """What was `sealed`. Raises ValueError where it was changed since."""
    record = dict(record)
    if record.pop("seal", None) != _seal(record):
        raise ValueError("wrong checksum of the record")
    return record


def _seal(record: dict[str, Any]) -> int:
    return crc32(json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode())


def _compare(stored: dict[str, int], found: dict[str, int]):
    wrong = [name for name in stored if stored[name] != found.get(name)]
    if wrong or not stored:
        raise ValueError(f"wrong checksum of {', '.join(wrong)}")
