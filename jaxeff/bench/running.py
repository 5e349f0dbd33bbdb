"""What a run costs beside its steps: waiting for data, and saving."""

import tempfile
import time
from statistics import median

import jax

from jaxeff.bench.record import record
from jaxeff.bench.training import Size, random_batch
from jaxeff.data import Data
from jaxeff.models.lm import LM
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.experiment import Experiment, Train, load
from jaxeff.train.step import make_step, put, start

# The size of the default ablation: a run of which a laptop makes many.
QUICKSTART = Experiment(LM(vocab_size=1024, d_model=128), Data(seq_len=256, batch_size=8), train=Train(steps=1000))


def _experiment(config: str | None) -> Experiment:
    return QUICKSTART if config is None else load(config)


def data(config: str | None = None, steps: int = 50, runs: int = 3) -> dict:
    """The share of a run's time in which the step waits for a batch, on the default corpus or that of a config.

    A run starts its iterator, compiled step in hand, and takes `steps` steps as the loop does: the step is started, the next
    batch is asked for while it computes. The clock of waiting runs while the iterator is asked; the first batch, for which
    nothing can be done, is counted too. The largest share of `runs` runs is the figure.
    """
    experiment = _experiment(config)
    prepared = experiment.data.prepare()
    step = make_step(experiment)
    batch = put(next(prepared.train()), step.mesh)
    jax.block_until_ready(step.step(start(experiment, step), batch))
    rows = []
    for run in range(runs):
        waiting, total = _waiting(experiment, prepared, step, steps)
        rows.append({"run": run, "steps": steps, "waiting_ms": 1e3 * waiting, "total_ms": 1e3 * total,
                     "share": waiting / total})
    worst = max(rows, key=lambda row: row["share"])
    return record("data", ours=worst["waiting_ms"], peer=worst["total_ms"], unit="ms", ratio=worst["share"], rows=rows,
                  meaning="share of a run's time that passes while waiting for data; less is better")


def _waiting(experiment, prepared, step, steps: int) -> tuple[float, float]:
    """(seconds in the iterator, seconds altogether) of one run."""
    state, waiting = jax.block_until_ready(start(experiment, step)), 0.0
    begin = time.perf_counter()
    batches, losses = prepared.train(), []
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waiting += time.perf_counter() - asked
        state, metrics = step.step(state, put(batch, step.mesh))
        losses.append(metrics["loss"])
        # At most one step ahead: else a CPU would queue them all and the iterator never be waited for.
        if len(losses) > 1:
            jax.block_until_ready(losses[-2])
    jax.block_until_ready(state)
    total = time.perf_counter() - begin
    batches.close()
    return waiting, total


def checkpoint(config: str | None = None, every: int = 20, rounds: int = 5) -> dict:
    """The time that saving every `every` steps adds to a step, on average.

    Rounds of `every` steps with a save after the first of them take turns with rounds without. Writing goes on while the steps
    run; what of it is not done after the last one is waited for and counted.
    """
    experiment = _experiment(config)
    step, data = make_step(experiment), experiment.data
    size = Size(experiment.model.d_model, data.seq_len, data.batch_size, vocab_size=experiment.model.vocab_size)
    batch = put(random_batch(size), step.mesh)
    state = start(experiment, step)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, saved = Checkpoints(folder), 0

        def round_of(save: bool) -> float:
            nonlocal state, saved
            jax.block_until_ready(state)
            begin = time.perf_counter()
            for i in range(every):
                state, metrics = step.step(state, batch)
                jax.block_until_ready(metrics)
                if save and i == 0:
                    saved += 1
                    checkpoints.save(saved, state, {"step": saved})
            if save:
                checkpoints.wait()
            return time.perf_counter() - begin

        round_of(True)  # compiles the step and the checksum
        times = [(round_of(True), round_of(False)) for _ in range(rounds)]
        checkpoints.close()
    rows = [{"round": i, "saving_ms_per_step": 1e3 * a / every, "plain_ms_per_step": 1e3 * b / every,
             "stall_share": a / b - 1} for i, (a, b) in enumerate(times)]
    saving, plain = (median(column) for column in zip(*times, strict=True))
    return record("checkpoint", ours=1e3 * saving / every, peer=1e3 * plain / every, unit="ms per step",
                  ratio=saving / plain, stall_share=median(a / b - 1 for a, b in times), rows=rows, every=every,
                  meaning=f"time a step with a save every {every} steps over that without; 1 is no stall")
