"""The training loop: the only one.

The loop never waits for a step before starting the next: the metrics of step n - 1 are read after step n was started. What must
see the state of step n itself (evaluation, a checkpoint, the end) waits for it.
"""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxeff.core.errors import UserError
from jaxeff.data import Prepared
from jaxeff.evaluate.perplexity import evaluate
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.experiment import Experiment
from jaxeff.train.progress import Silent
from jaxeff.train.state import State
from jaxeff.train.step import Step, make_step, put, start
from jaxeff.train.workdir import Metrics, claim, locked, stored


@dataclasses.dataclass(frozen=True)
class Result:
    """The end of a run. lines: what metrics.jsonl holds; stopped: it was asked to stop before its last step."""

    step: int
    stopped: bool
    lines: list[dict[str, Any]]
    state: State
    prepared: Prepared

    @property
    def bits_per_byte(self) -> float | None:
        """The last evaluation on the validation split."""
        return next((line["bits_per_byte"] for line in reversed(self.lines) if "bits_per_byte" in line), None)


def fit(
    experiment: Experiment,
    workdir,
    *,
    report: Silent | None = None,
    stop: Callable[[], bool] | None = None,
    prepared: Prepared | None = None,
) -> Result:
    """Trains until the last step, from wherever `workdir` stands.

    stop: asked after each step; when it says yes, the run is saved and returned as it is. prepared: `experiment.data.prepare()`,
    where the caller has it already.

    Raises UserError for data, sizes, folders and configs that do not fit, and when `train.max_bad_steps` steps in a row had a
    non-finite loss or gradient.
    """
    report, workdir = report or Silent(), Path(workdir)
    prepared = experiment.data.prepare(report=report.stage) if prepared is None else prepared
    _check(experiment, prepared)
    step = make_step(experiment)
    with locked(workdir), contextlib.ExitStack() as closing:
        claim(workdir, experiment, prepared.fingerprint)
        checkpoints = closing.enter_context(contextlib.closing(Checkpoints(workdir, experiment.train.keep)))
        batches = closing.enter_context(contextlib.closing(prepared.train(jax.process_index(), jax.process_count())))
        report.stage("compiling", 0, 1)
        at, state, record = begin(experiment, step, checkpoints, report.say)
        if record is not None:
            batches.set_state(record["data"])
        metrics = closing.enter_context(contextlib.closing(Metrics(workdir, at)))
        run = Run(experiment, step, prepared, checkpoints, metrics, report, state, at, record or {})
        run.go(batches, stop or (lambda: False))
        return Result(run.at, run.at < experiment.train.steps, metrics.lines, run.state, prepared)


def begin(experiment: Experiment, step: Step, checkpoints: Checkpoints, note) -> tuple[int, State, dict | None]:
    """(step, state, record) to go on from. In this order:

    1. the workdir's newest readable checkpoint;
    2. the weights of another run (`train.init_from`), optimizer and step fresh;
    3. initial values.
    """
    found = checkpoints.restore_latest(step.abstract, note)
    if found is not None:
        return found
    state = start(experiment, step)
    if experiment.train.init_from is not None:
        weights, _ = restore_weights(experiment.train.init_from, step.mesh)
        state = dataclasses.replace(state, params=_fitting(weights, state.params, experiment.train.init_from))
    return 0, state, None


def restore_weights(workdir, mesh=None) -> tuple[Any, int]:
    """(weights to evaluate, step) of a run's newest readable checkpoint. Raises UserError when there is none."""
    step = make_step(stored(workdir), mesh)
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        found = checkpoints.restore_latest(step.abstract) if checkpoints.steps() else None
    finally:
        checkpoints.close()
    if found is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    return found[1].weights, found[0]


def _fitting(weights, params, source):
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (weights, params)]
    if shapes[0] != shapes[1]:
        raise UserError(f"train.init_from={source!r} holds a model of other sizes")
    # Its own buffers: the step gives the state's away.
    return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding, may_alias=False), weights, params)


def _check(experiment: Experiment, prepared: Prepared):
    needed, model, data = prepared.tokenizer.vocab_size, experiment.model, experiment.data
    if needed > model.vocab_size:
        raise UserError(f"the tokenizer has {needed} ids but model.vocab_size={model.vocab_size}")
    if model.max_positions is not None and data.seq_len > model.max_positions:
        raise UserError(f"data.seq_len={data.seq_len} is longer than model.max_positions={model.max_positions}")


@dataclasses.dataclass
class Run:
    """A run between two steps."""

    experiment: Experiment
    step: Step
    prepared: Prepared
    checkpoints: Checkpoints
    metrics: Metrics
    report: Silent
    state: State
    at: int
    record: dict[str, Any]

    def __post_init__(self):
        self.tokens = self.record.get("tokens", 0)
        self.seconds = self.record.get("seconds", 0.0)
        self.clock = _Clock()

    def go(self, batches, stop: Callable[[], bool]) -> None:
        """Steps until the last one, or until `stop`."""
        train, pending = self.experiment.train, None
        while self.at < train.steps:
            with self.clock("data_wait"):
                batch = next(batches)
            self.state, out = self.step.step(self.state, put(batch, self.step.mesh))
            self.at += 1
            if pending is not None:
                self._read(*pending)
            last, stopping = self.at == train.steps, stop()
            evaluating = last or _due(self.at, train.eval_every)
            saving = last or stopping or _due(self.at, train.save_every)
            # Keep the device one step ahead, unless somebody wants to see this very step.
            pending = (self.at, out)
            if evaluating or saving:
                self._read(*pending, extra=self._evaluate() if evaluating else None)
                pending = None
            if saving:
                self._save(batches)
            if stopping:
                break
        self.checkpoints.wait()

    def _read(self, at: int, out, extra: dict[str, float] | None = None) -> None:
        """Looks at the metrics of a step, and logs them where due. Blocks until the step is done."""
        out = {name: value.item() for name, value in jax.device_get(out).items()}
        self.tokens += int(out["n_targets"])
        self.clock.tokens += int(out["n_targets"])
        self.clock.steps += 1
        if out["bad"] >= self.experiment.train.max_bad_steps:
            raise UserError(
                f"step {at}: {out['bad']} steps in a row had a non-finite loss or gradient (loss {out['loss']});"
                " lower optim.lr, or go on from an earlier checkpoint"
            )
        if extra is None and not _due(at, self.experiment.train.log_every):
            return
        elapsed = self.clock.read()
        self.seconds += elapsed["seconds"]
        line = {
            "step": at,
            "loss": _plain(out["loss"]),
            "grad_norm": _plain(out["grad_norm"]),
            "lr": out["lr"],
            "tokens": self.tokens,
            "tokens_per_s": elapsed["tokens_per_s"],
            "seconds": round(self.seconds, 3),
            "data_wait": elapsed["data_wait"],
            "save_wait": elapsed["save_wait"],
            "skipped": out["skipped"],
        } | {name: _plain(value) for name, value in (extra or {}).items()}
        self.metrics.append(line)
        self.report.step(at, self.experiment.train.steps, line)

    def _evaluate(self) -> dict[str, float] | None:
        """Readings of the validation split; None where the data has none."""
        if not self.prepared.data.valid_fraction:
            return {}
        jax.block_until_ready(self.state.params)
        with self.clock("evaluation"):
            e = self.experiment
            batches = self.prepared.eval("validation")
            found = evaluate(
                e.model, self.state.weights, batches, self.prepared.tokenizer.token_bytes,
                policy=e.policy, mesh=self.step.mesh, limit=e.train.eval_batches,
            )  # fmt: skip
        return {"bits_per_byte": found["bits_per_byte"], "eval_loss": found["loss"]}

    def _save(self, batches) -> None:
        """Starts a checkpoint of this step. The data stand just behind this step's batch."""
        last = self.metrics.lines[-1] if self.metrics.lines else {}
        here = last.get("step") == self.at and last.get("bits_per_byte") is not None
        record = {"data": batches.get_state(), "tokens": self.tokens, "seconds": self.seconds}
        with self.clock("save_wait"):
            jax.block_until_ready(self.state)
            scores = {"bits_per_byte": last["bits_per_byte"]} if here else None
            self.checkpoints.save(self.at, self.state, record, scores)


class _Clock:
    """Where the time goes between two logged steps: waiting for data, saving; evaluation is not training time."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.begin, self.tokens, self.steps = time.perf_counter(), 0, 0
        self.spent = {"data_wait": 0.0, "save_wait": 0.0, "evaluation": 0.0}

    @contextlib.contextmanager
    def __call__(self, what: str):
        begin = time.perf_counter()
        yield
        self.spent[what] += time.perf_counter() - begin

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.begin - self.spent["evaluation"]
        found = {
            "seconds": seconds,
            "tokens_per_s": round(self.tokens / max(seconds, 1e-9), 1),
            "data_wait": round(self.spent["data_wait"], 4),
            "save_wait": round(self.spent["save_wait"], 4),
        }
        self.reset()
        return found


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _plain(value: float) -> float | None:
    """JSON has no NaN: a non-finite value is null."""
    return value if math.isfinite(value) else None


@contextlib.contextmanager
def on_signal():
    """For the time of the block, SIGTERM and SIGINT only raise a flag; yields the function that reads it."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: flag.set()) for number in signals]
    try:
        yield flag.is_set
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
