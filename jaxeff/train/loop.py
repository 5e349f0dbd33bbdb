"""The training loop: restore, step, log, evaluate, save.

A run starts in one of these ways, tried in this order:
  1. the workdir has a readable checkpoint: go on from the newest one;
  2. `base` or `train.init_from` names another run: its weights, everything else fresh;
  3. fresh values from the seed.
All of them are functions of the config and the files named, so a run that is killed and started again is the same run.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.files import write_json
from jaxeff.data.public_tokenizer import SOURCES, Published
from jaxeff.evaluate.scores import evaluate
from jaxeff.mixers.start import START, length
from jaxeff.objectives.base import check_score
from jaxeff.train.checkpoint import Checkpoints, checksums
from jaxeff.train.circumstances import circumstances
from jaxeff.train.clock import Clock, moment
from jaxeff.train.description import length_of, parameters
from jaxeff.train.experiment import Experiment
from jaxeff.train.kept import keep
from jaxeff.train.optim import schedule
from jaxeff.train.progress import Silent
from jaxeff.train.room import check_room
from jaxeff.train.state import State
from jaxeff.train.step import Step, make_step, put, share
from jaxeff.train.storage import place
from jaxeff.train.tracing import Profile, Tracer
from jaxeff.train.trained import PUBLIC, frozen_weights, initial, plain_weights
from jaxeff.train.utilisation import ideal_seconds
from jaxeff.train.workdir import (
    Metrics,
    check_config,
    check_corpus,
    describe,
    locked,
    read_metrics,
    read_run,
    trained,
)
from jaxeff.train.writers import check_packages, writers


@dataclasses.dataclass
class Result:
    """What a call of `fit` leaves: the last step and state, the lines of metrics.jsonl from step 1 on, the last step's
    score on the validation split (None when there is none), and whether it was stopped before the end."""

    step: int
    state: State
    lines: list[dict[str, Any]]
    score: float | None
    stopped: bool

    @property
    def weights(self):
        """The weights to evaluate."""
        return self.state.weights


def fit(
    experiment: Experiment,
    workdir,
    *,
    report: Silent | None = None,
    stop: Callable[[], bool] | None = None,
    prepared=None,
    force: bool = False,
    profile: Profile | None = None,
) -> Result:
    """Train `experiment` in `workdir`, or go on with it there; a finished run also with more steps than it had.

    report: see `jaxeff.train.progress`. stop: asked after each step; when true, the run is saved and ends. prepared:
    `experiment.data.prepare()`, where the caller has it already. force: begin even where memory cannot suffice. profile: the steps
    to trace, see `jaxeff.train.tracing`.

    Raises UserError for whatever the user can put right: config, data, folder, mesh, a loss that stays non-finite.
    """
    report, stop = report or Silent(), stop or (lambda: False)
    there = place(workdir, fresh=True)
    check_packages(experiment.train)
    step = make_step(experiment)
    if not force:
        check_room(experiment, step)
    with contextlib.ExitStack() as stack:
        still_there = stack.enter_context(locked(there.folder)) if jax.process_index() == 0 else lambda: None
        if (there.folder / "ablation.json").exists():
            raise UserError(f"{workdir} holds an ablation; use another workdir, or see jaxeff ablate")
        run = read_run(workdir)
        if run is not None and not trained(workdir):
            run = None  # a start that came to nothing binds nobody
        if run is not None:
            check_config(run, experiment, workdir)
        if jax.process_index() == 0:
            there.claim()
            stack.callback(there.push)
        prepared = experiment.data.prepare(report=report.stage) if prepared is None else prepared
        check_all(experiment, prepared, step)
        if run is not None:
            check_corpus(run, prepared.fingerprint, workdir)
        checkpoints = Checkpoints(workdir, experiment.objective.score, keep=experiment.train.keep)
        stack.callback(checkpoints.close)
        if run is None and checkpoints.steps():
            raise UserError(f"{workdir} holds checkpoints but no run.json that says of what; use another workdir")
        loop = _Loop(experiment, workdir, step, prepared, checkpoints, report, still_there)
        stack.callback(loop.close)
        loop.begin(run)
        loop.trace(profile)
        return loop.run(stop)


def headline(experiment: Experiment, prepared) -> str:
    """What is trained, and on how much."""
    epochs = experiment.train.steps * experiment.data.batch_size / len(prepared.splits["train"])
    return f"parameters: {parameters(experiment)}; to train: {length_of(experiment)}, {epochs:.3g} epochs"


def check_all(experiment: Experiment, prepared, step: Step):
    """Raises UserError where model, data, objective and what the run starts from do not fit each other."""
    check_model(experiment, prepared)
    check_objective(experiment, prepared, step)
    check_reading(experiment, prepared)


def check_model(experiment: Experiment, prepared):
    """Raises UserError when the model cannot read this data."""
    known, needed = experiment.model.vocab_size, prepared.vocab_size
    if known < needed:
        raise UserError(
            f"model.vocab_size={known} is smaller than the data's vocabulary: set model.vocab_size={needed}"
        )
    start = experiment.specs.get(START, {})
    bound, before = experiment.model.max_positions, length(start)
    if bound is not None and before + experiment.data.seq_len > bound:
        more = f" and {before} learned positions before it are" if before else " is"
        raise UserError(f"data.seq_len={experiment.data.seq_len}{more} longer than model.max_positions={bound}")
    if start and any(rows.segment_ids_BT.max(initial=0) > 1 for rows in prepared.splits.values()):
        raise UserError(
            "a learned start belongs to the first text of a row, and rows of these data hold several: set data.packed=false"
        )


def check_reading(experiment: Experiment, prepared):
    """Raises UserError when the run that this one starts from had another tokenizer."""
    ours = prepared.statistics.get("tokenizer")
    for field, workdir in (("base", experiment.base), ("train.init_from", experiment.train.init_from)):
        theirs = None if workdir is None else tokenizer_of(workdir)
        if ours and theirs and ours != theirs:
            raise UserError(
                f"{field}={workdir} read text by another tokenizer ({theirs[:12]} there, {ours[:12]} here): "
                "data.tokenizer may be the data that it was learnt from, or Published(FOLDER) of a public checkpoint"
            )


def tokenizer_of(base: str) -> str | None:
    """The identity of a run's or a public checkpoint's tokenizer, None where it has none."""
    if base.startswith(PUBLIC):
        folder = Path(base.removeprefix(PUBLIC))
        return Published(str(folder)).load().identity if any((folder / name).is_file() for name in SOURCES) else None
    run = read_run(base)
    return None if run is None else run["data"].get("tokenizer")


def check_objective(experiment: Experiment, prepared, step: Step):
    """Raises UserError when the score to follow cannot be computed on the validation split."""
    if "validation" in prepared.splits:
        batch = next(iter(prepared.eval("validation")))
        sums = functools.partial(experiment.objective.sums, experiment.model)
        check_score(experiment.objective, jax.eval_shape(sums, step.abstract.weights, batch))


class _Loop:
    """The state of `fit` between its steps."""

    def __init__(
        self,
        experiment: Experiment,
        workdir,
        step: Step,
        prepared,
        checkpoints: Checkpoints,
        report: Silent,
        still_there: Callable[[], None],
    ):
        self.experiment, self.train, self.workdir, self.step = experiment, experiment.train, workdir, step
        self.prepared, self.checkpoints, self.report = prepared, checkpoints, report
        self.still_there = still_there
        self.place, self.folder = checkpoints.place, checkpoints.place.folder
        self.batches = prepared.train(*share(step.mesh))
        self.validation = prepared.eval("validation") if "validation" in prepared.splits else None
        self.score = experiment.objective.score
        self.clock = Clock()
        self.done = self.tokens = 0
        self.metrics: Metrics | None = None
        self.sent = 0  # steps of this start
        self.closers = [close for close in [getattr(self.batches, "close", None)] if close]

    def close(self):
        for close in reversed(self.closers):
            close()

    def begin(self, run: dict[str, Any] | None):
        """Restore or initialise; see the module docstring for the order."""
        there = bool(self.checkpoints.steps())
        self._stage("restoring", there)
        found = self.checkpoints.restore_latest(self.step.abstract, self.report.warn)
        self._stage("restoring", there, 1)
        if found is not None:
            self.done, state, record = found
            frozen = frozen_weights(self.experiment, self.workdir, self.step, record.get("frozen"), self.report)
            steps = jax.device_put(jnp.int32(self.train.steps), state.steps.sharding)  # a finished run may go on
            self.state = dataclasses.replace(state, frozen=frozen, steps=steps)
            self.batches.set_state(record["data"])
            self.tokens, self.clock.before = record["tokens"], record["seconds"]
            self.clock.computed_before = record.get("computed")
            self.report.say(f"going on from step {self.done} of {self.train.steps}")
            if run is not None and run["config"]["train"]["steps"] < self.train.steps:
                self._longer(run)
        else:
            self.report.say(headline(self.experiment, self.prepared))
            self._stage("initial weights")
            self.state = initial(self.experiment, self.step, self.report)
            self._stage("initial weights", done=1)
            if self.train.init_from is not None:
                self.state = dataclasses.replace(self.state, **self._weights_from(self.train.init_from))
        self.frozen = checksums(self.state.frozen)
        if jax.process_index() == 0:
            self.about = describe(self.experiment, self.prepared, self.step.mesh) if run is None else run
            if run is not None:
                run["starts"].append(circumstances(self.done, self.step.mesh))
            self.clock.since = moment(self.about["starts"][0].get("time"))
            if found is not None:
                self._open(self.done)

    def _open(self, done: int):
        """Files are written from here on, of steps after `done`. A new run has none before its first step is done: a start that
        comes to nothing leaves nothing."""
        self.still_there()
        write_json(self.folder / "run.json", self.about)
        keep(self.folder, self.prepared)
        self.metrics = Metrics(self.folder, done, self._rhythm(self.about), self.report.warn)
        self.closers.append(self.metrics.close)
        self.writers = writers(self.train, self.folder, self.about, done)
        self.closers += [writer.close for writer in self.writers]

    def trace(self, profile: Profile | None):
        """Steps of this start are traced."""
        self.tracer = Tracer(profile, self.folder, self.train.steps - self.done, self.report, self.clock)
        self.closers.append(self.tracer.close)

    def _stage(self, text: str, shown: bool = True, done: int = 0):
        """Something without parts begins, or ends (done=1)."""
        if shown:
            self.report.stage(text, done, 1)

    def _longer(self, run: dict[str, Any]):
        """More steps than the run was made for; the schedule is that of the longer run from here on."""
        before = run["config"]["train"]["steps"]
        run["config"]["train"]["steps"] = self.train.steps
        share = schedule(self.experiment.optim)
        old, new = (
            self.experiment.optim.lr * float(share(jnp.int32(self.done), jnp.int32(steps)))
            for steps in (before, self.train.steps)
        )
        self.report.say(
            f"{before} steps become {self.train.steps}: the learning rate goes on at {new:.3g}, it was {old:.3g}"
        )

    def _rhythm(self, run: dict[str, Any]) -> int | None:
        """Of how many steps one has a line whatever log_every was so far, None if there may be none."""
        both = self.train.log_every, run["config"].get("train", {}).get("log_every")
        return None if None in both else math.lcm(*both)

    def _weights_from(self, workdir: str) -> dict[str, Any]:
        try:
            params = plain_weights(workdir, self.experiment.model, self.step.mesh, self.report)
        except UserError as error:
            raise UserError(f"train.init_from={workdir}: {error}") from None
        average = None if self.state.ema is None else jax.tree.map(jnp.copy, params)
        return {"params": params, "ema": average}

    def run(self, stop: Callable[[], bool]) -> Result:
        """The steps. Metrics of a step are read after the next one was sent off, so that the device never waits for us."""
        pending: tuple[int, dict] | None = None
        stopped = False
        self.clock.start()
        self._stage("compiling", self.done < self.train.steps)
        while self.done < self.train.steps and not stopped:
            with self.clock.waiting("data_wait"):
                batch = next(self.batches)
            metrics = self._step(batch)
            self.done += 1
            if pending is not None:
                self._finish(*pending)
            pending = self.done, metrics
            stopped = stop()
            if stopped or self._due(self.train.save_every) or self._due(self.train.eval_every):
                # The line of a step is on disk before the checkpoint that starts behind it: none is ever missing.
                jax.block_until_ready(metrics)  # the step's time is none of the evaluation
                scores = self._evaluate() if self._due(self.train.eval_every) else None
                self._finish(*pending, scores)
                pending = None
                if stopped or self._due(self.train.save_every):
                    self._save(scores)
        if stopped:
            self._save(None)
        self.checkpoints.wait()
        lines, finished = read_metrics(self.workdir), self.done == self.train.steps
        last = lines[-1] if finished and lines else {}
        return Result(self.done, self.state, lines, last.get(f"eval_{self.score.name}"), stopped=not finished)

    def _step(self, batch) -> dict[str, jax.Array]:
        """Sends one step off; the first of a start is compiled before, and its FLOPs are counted while the devices compute it."""
        first, self.sent = not self.sent, self.sent + 1
        with self.tracer.step(self.sent), self.clock.waiting("compile") if first else contextlib.nullcontext():
            with jax.transfer_guard("disallow"):
                placed = put(batch, self.step.mesh)
                self.state, metrics = self.step.step(self.state, placed)
            if first:
                self.clock.ideal = ideal_seconds(self.experiment, self.step.mesh, placed)
        self.tracer.sent(self.sent, metrics)
        return metrics

    def _due(self, every: int | None) -> bool:
        return self.done == self.train.steps or (every is not None and self.done % every == 0)

    def _finish(self, step: int, metrics: dict, scores: dict | None = None):
        """Read a step's metrics, show them, and write them where it is time to."""
        values = {name: value.tolist() for name, value in jax.device_get(metrics).items()}
        if self.metrics is None and jax.process_index() == 0:
            with self.clock.waiting("checkpoint"):
                self._open(0)
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
        }
        line |= {f"eval_{name}": _finite(value) for name, value in (scores or {}).items()}
        line |= {name: value for name, value in values.items() if "/" in name}
        line |= self.clock.told(step)
        verdict = None if scores is None else self._verdict(scores)
        self.report.step(step, self.train.steps, line, verdict)
        every = self.train.log_every
        if scores or step == self.train.steps or (every and step % every == 0):
            self._write(line)
        if values["bad"] >= self.train.max_bad_steps:
            self._give_up(step, values["bad"])

    def _write(self, line: dict[str, Any]):
        """A line of metrics.jsonl, and whatever else is to have it; process 0 writes for all."""
        self.clock.mark()
        if jax.process_index() != 0:
            return
        self.still_there()
        self.metrics.write(line)
        for writer in self.writers:
            writer.write(line)

    def _verdict(self, scores: dict[str, float]) -> str:
        """With the loss as well, which is what the steps between show."""
        loss = f", loss {scores['loss']:.4f}" if "loss" in scores and self.score.name != "loss" else ""
        return f"validation {self.score.describe(scores[self.score.name])}{loss}"

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
        with self.clock.waiting("evaluation"):
            found = evaluate(
                self.experiment.objective,
                self.experiment.model,
                self.state.weights,
                self.validation,
                policy=self.experiment.policy,
                mesh=self.step.mesh,
                limit=self.train.eval_batches,
                report=self.report.stage,
            )
        return found.scores

    def _save(self, scores: dict | None):
        if self.done in self.checkpoints.steps():
            return
        record = {
            "step": self.done,
            "tokens": self.tokens,
            "seconds": self.clock.seconds,
            "computed": self.clock.computed,
            "data": self.batches.get_state(),
            "frozen": self.frozen,
        }
        score = _finite(scores[self.score.name]) if scores else None
        with self.clock.waiting("checkpoint"):
            if jax.process_index() == 0:
                self.place.push()
            self.checkpoints.save(self.done, self.state, record, score)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
