"""The training loop: restore, step, log, evaluate, save.

A run starts in one of these ways, tried in this order:
  1. the workdir has a readable checkpoint: go on from the newest one;
  2. `train.init_from` names another run: its weights, everything else fresh;
  3. fresh values from the seed.
All of them are functions of the config and the files named, so a run that is killed and started again is the same run.
"""

import collections
import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.tree import paths
from jaxeff.evaluate.perplexity import evaluate
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.experiment import Experiment
from jaxeff.train.progress import Silent
from jaxeff.train.state import State
from jaxeff.train.step import Step, make_step, put, start
from jaxeff.train.workdir import (
    Metrics,
    check_config,
    check_corpus,
    circumstances,
    describe,
    locked,
    read_metrics,
    read_run,
    stored_experiment,
    write_json,
)

# Steps over which tokens per second are counted: metrics are read in pairs around a save, one step alone says little.
WINDOW = 20


@dataclasses.dataclass
class Result:
    """What a call of `fit` leaves: the last step and state, the lines of metrics.jsonl from step 1 on, the last step's
    validation (None when there is none), and whether it was stopped before the end."""

    step: int
    state: State
    lines: list[dict[str, Any]]
    bits_per_byte: float | None
    stopped: bool


def fit(
    experiment: Experiment,
    workdir,
    *,
    report: Silent | None = None,
    stop: Callable[[], bool] | None = None,
    prepared=None,
) -> Result:
    """Train `experiment` in `workdir`, or go on with it there.

    report: see `jaxeff.train.progress`. stop: asked after each step; when true, the run is saved and ends. prepared:
    `experiment.data.prepare()`, where the caller has it already.

    Raises UserError for whatever the user can put right: config, data, folder, mesh, a loss that stays non-finite.
    """
    report, stop = report or Silent(), stop or (lambda: False)
    workdir = Path(workdir)
    step = make_step(experiment)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(locked(workdir))
        run = read_run(workdir)
        if run is not None:
            check_config(run, experiment, workdir)
        prepared = experiment.data.prepare(report=report.stage) if prepared is None else prepared
        check_model(experiment, prepared)
        if run is not None:
            check_corpus(run, prepared.fingerprint, workdir)
        checkpoints = Checkpoints(workdir, keep=experiment.train.keep)
        stack.callback(checkpoints.close)
        if run is None and checkpoints.steps():
            raise UserError(f"{workdir} holds checkpoints but no run.json that says of what; use another workdir")
        loop = _Loop(experiment, workdir, step, prepared, checkpoints, report)
        stack.callback(loop.close)
        loop.begin(run)
        return loop.run(stop)


def check_model(experiment: Experiment, prepared):
    """Raises UserError when the model cannot read this data."""
    known, needed = experiment.model.vocab_size, prepared.tokenizer.vocab_size
    if known < needed:
        raise UserError(
            f"model.vocab_size={known} is smaller than the tokenizer's vocabulary: set model.vocab_size={needed}"
        )
    bound = experiment.model.max_positions
    if bound is not None and experiment.data.seq_len > bound:
        raise UserError(f"data.seq_len={experiment.data.seq_len} is longer than model.max_positions={bound}")


class _Loop:
    """The state of `fit` between its steps."""

    def __init__(
        self, experiment: Experiment, workdir: Path, step: Step, prepared, checkpoints: Checkpoints, report: Silent
    ):
        self.experiment, self.train, self.workdir, self.step = experiment, experiment.train, workdir, step
        self.prepared, self.checkpoints, self.report = prepared, checkpoints, report
        self.batches = prepared.train(jax.process_index(), jax.process_count())
        has_validation = experiment.data.valid_fraction > 0
        self.validation = prepared.eval("validation") if has_validation else None
        self.clock = Clock()
        self.done = self.tokens = 0
        self.closers = [close for close in [getattr(self.batches, "close", None)] if close]

    def close(self):
        for close in reversed(self.closers):
            close()

    def begin(self, run: dict[str, Any] | None):
        """Restore or initialise; see the module docstring for the order."""
        found = self.checkpoints.restore_latest(self.step.abstract, self.report.warn)
        if found is not None:
            self.done, self.state, record = found
            self.batches.set_state(record["data"])
            self.tokens, self.clock.before = record["tokens"], record["seconds"]
            self.report.say(f"going on from step {self.done} of {self.train.steps}")
        else:
            self.state = start(self.experiment, self.step)
            if self.train.init_from is not None:
                self.state = dataclasses.replace(self.state, **self._weights_from(self.train.init_from))
        if jax.process_index() == 0:
            if run is None:
                run = describe(self.experiment, self.prepared, self.step.mesh)
            else:
                run["starts"].append(circumstances(self.done, self.step.mesh))
            write_json(self.workdir / "run.json", run)
            self.metrics = Metrics(self.workdir, self.done)
            self.closers.append(self.metrics.close)
            self.events = _event_writer(self.workdir, self.done) if self.train.tensorboard else None
            if self.events is not None:
                self.closers.append(self.events.close)

    def _weights_from(self, workdir: str) -> dict[str, Any]:
        source = Checkpoints(workdir, read_only=True)
        if not source.steps():
            raise UserError(f"train.init_from={workdir}: there is no checkpoint")
        theirs, ours = (paths(e.model.specs()) for e in (stored_experiment(workdir), self.experiment))
        if {path: spec.shape for path, spec in theirs.items()} != {path: spec.shape for path, spec in ours.items()}:
            raise UserError(f"train.init_from={workdir}: that model is of other sizes")
        params = source.restore_weights(self.step.abstract.params, source.steps()[-1])
        source.close()
        average = None if self.state.ema is None else jax.tree.map(jnp.copy, params)
        return {"params": params, "ema": average}

    def run(self, stop: Callable[[], bool]) -> Result:
        """The steps. Metrics of a step are read after the next one was sent off, so that the device never waits for us."""
        pending: tuple[int, dict] | None = None
        stopped = stop() and self.done < self.train.steps
        self.clock.start()
        if self.done < self.train.steps:
            self.report.stage("compiling", 0, 1)
        while self.done < self.train.steps and not stopped:
            with self.clock.waiting("data_wait"):
                batch = next(self.batches)
            with jax.transfer_guard("disallow"):
                self.state, metrics = self.step.step(self.state, put(batch, self.step.mesh))
            self.done += 1
            if pending is not None:
                self._finish(*pending)
            pending = self.done, metrics
            stopped = stop()
            if stopped or self._due(self.train.save_every) or self._due(self.train.eval_every):
                # The line of a step is on disk before the checkpoint that starts behind it: none is ever missing.
                scores = self._evaluate() if self._due(self.train.eval_every) else None
                self._finish(*pending, scores)
                pending = None
                if stopped or self._due(self.train.save_every):
                    self._save(scores)
        if stopped:
            self._save(None)
        self.checkpoints.wait()
        lines, finished = read_metrics(self.workdir), self.done == self.train.steps
        score = lines[-1].get("bits_per_byte") if finished and lines else None
        return Result(self.done, self.state, lines, score, stopped=not finished)

    def _due(self, every: int | None) -> bool:
        return self.done == self.train.steps or (every is not None and self.done % every == 0)

    def _finish(self, step: int, metrics: dict, scores: dict | None = None):
        """Read a step's metrics, show them, and write them where it is time to."""
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self.tokens += int(values["n_targets"])
        speed = self.clock.tick(self.tokens)
        line = {
            "step": step,
            "loss": _finite(values["loss"]),
            "grad_norm": _finite(values["grad_norm"]),
            "lr": values["lr"],
            "tokens": self.tokens,
            "tokens_per_s": speed,
            "seconds": self.clock.seconds,
            "skipped": values["skipped"],
        } | {name: _finite(value) for name, value in (scores or {}).items()}
        self.report.step(step, self.train.steps, line)
        every = self.train.log_every
        if (scores or step == self.train.steps or (every and step % every == 0)) and jax.process_index() == 0:
            self.metrics.write(line | self.clock.waits())
            if self.events is not None:
                for name, value in line.items():
                    if name != "step" and value is not None:
                        self.events.add_scalar(name, value, step)
        if values["bad"] >= self.train.max_bad_steps:
            self._give_up(step, values["bad"])

    def _give_up(self, step: int, bad: int):
        # Skipped steps changed nothing: the state holds the last good weights.
        self._save(None)
        self.checkpoints.wait()
        raise UserError(
            f"loss or gradient was not finite in {bad} steps in a row (up to step {step}); the weights of step {step - bad} are"
            f" kept in {self.workdir}; lower optim.lr or raise optim.warmup, in another workdir"
        )

    def _evaluate(self) -> dict[str, float] | None:
        if self.validation is None or not len(self.validation):
            return None
        with self.clock.paused():
            found = evaluate(
                self.experiment.model,
                self.state.weights,
                self.validation,
                self.prepared.tokenizer.token_bytes,
                policy=self.experiment.policy,
                mesh=self.step.mesh,
                limit=self.train.eval_batches,
                report=self.report.stage,
            )
        return {"bits_per_byte": found["bits_per_byte"], "eval_loss": found["loss"]}

    def _save(self, scores: dict | None):
        if self.done in self.checkpoints.steps():
            return
        record = {
            "step": self.done,
            "tokens": self.tokens,
            "seconds": self.clock.seconds,
            "data": self.batches.get_state(),
        }
        usable = scores if scores and math.isfinite(scores["bits_per_byte"]) else None
        with self.clock.waiting("save_wait"):
            self.checkpoints.save(self.done, self.state, record, usable)


class Clock:
    """Seconds of training, earlier starts included and evaluation left out, and what of them was spent waiting."""

    def __init__(self):
        self.before = self._left_out = 0.0
        self._waits = {"data_wait": 0.0, "save_wait": 0.0}
        self._recent: collections.deque[tuple[float, int]] = collections.deque(maxlen=WINDOW)
        self.start()

    def start(self):
        """Now is where this process's training starts."""
        self._begun, self._left_out = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self.before + time.perf_counter() - self._begun - self._left_out

    @contextlib.contextmanager
    def paused(self):
        """Time that is no training."""
        begun = time.perf_counter()
        yield
        self._left_out += time.perf_counter() - begun

    @contextlib.contextmanager
    def waiting(self, name: str):
        """Time in which the loop waits for something."""
        begun = time.perf_counter()
        yield
        self._waits[name] += time.perf_counter() - begun

    def tick(self, tokens: int) -> float | None:
        """Tokens per second over the last steps, given the tokens so far; None after the first step, which compiled."""
        self._recent.append((self.seconds, tokens))
        (since, before), (now, total) = self._recent[0], self._recent[-1]
        return (total - before) / (now - since) if now > since else None

    def waits(self) -> dict[str, float]:
        """Seconds of waiting, by reason, since the last call."""
        found, self._waits = self._waits, dict.fromkeys(self._waits, 0.0)
        return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _event_writer(workdir: Path, step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "train.tensorboard=true needs the package tensorboardX: pip install 'jaxeff[tensorboard]'"
        ) from None
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)


@contextlib.contextmanager
def on_signal() -> Iterator[Callable[[], bool]]:
    """`stop` for `fit`: true after SIGTERM or SIGINT. A second signal has its usual effect, at once."""
    asked = threading.Event()
    usual = {}

    def handle(number, frame):
        asked.set()
        signal.signal(number, usual[number])

    if threading.current_thread() is threading.main_thread():
        usual = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
