"""What a run costs beside its steps: waiting for data, and saving."""

import dataclasses
import tempfile
import time
from statistics import median

import jax

from jaxeff.bench.record import record
from jaxeff.bench.training import Size, random_batch
from jaxeff.data import Prepared, TextData
from jaxeff.models.lm import LM
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.config_file import load
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.loop import fit
from jaxeff.train.step import make_step, put, start

# About the size of configs/quickstart.py: a run of which a laptop makes many.
QUICKSTART = Experiment(LM(vocab_size=1024, d_model=128), TextData(seq_len=256, batch_size=8), train=Train(steps=1000))


def _experiment(config: str | None) -> Experiment:
    return QUICKSTART if config is None else load(config)


def data(config: str | None = None, steps: int = 50, runs: int = 3) -> dict:
    """The share of a run's time in which it waits for a batch: the default corpus and size, or those of a config.

    Runs of `steps` steps by the training loop itself, whose own clock is read; compilation is done before, evaluation and the
    time it takes are left out, the first batch, for which nothing was ready, is counted. The figure is the largest share.
    """
    experiment = _experiment(config)
    prepared = experiment.data.prepare()
    _run(experiment, prepared, 2)  # compiles
    rows = []
    for run in range(runs):
        waiting, total = _run(experiment, prepared, steps)
        rows.append(
            {"run": run, "steps": steps, "waiting_ms": 1e3 * waiting, "total_ms": 1e3 * total, "share": waiting / total}
        )
    worst = max(rows, key=lambda row: row["share"])
    return record(
        "data",
        ours=worst["waiting_ms"],
        peer=worst["total_ms"],
        unit="ms",
        ratio=worst["share"],
        rows=rows,
        meaning="share of a run's time that passes while waiting for data; less is better",
    )


def _run(experiment: Experiment, prepared: Prepared, steps: int) -> tuple[float, float]:
    """(seconds of waiting for data, seconds of training) of a run."""
    train = dataclasses.replace(
        experiment.train, steps=steps, log_every=10, eval_every=None, save_every=None, eval_batches=1
    )
    with tempfile.TemporaryDirectory() as folder:
        lines = fit(dataclasses.replace(experiment, train=train), folder, prepared=prepared).lines
    return sum(line["data_wait"] for line in lines), lines[-1]["seconds"]


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
    rows = [
        {
            "round": i,
            "saving_ms_per_step": 1e3 * a / every,
            "plain_ms_per_step": 1e3 * b / every,
            "stall_share": a / b - 1,
        }
        for i, (a, b) in enumerate(times)
    ]
    saving, plain = (median(column) for column in zip(*times, strict=True))
    return record(
        "checkpoint",
        ours=1e3 * saving / every,
        peer=1e3 * plain / every,
        unit="ms per step",
        ratio=saving / plain,
        stall_share=median(a / b - 1 for a, b in times),
        rows=rows,
        every=every,
        meaning=f"time a step with a save every {every} steps over that without; 1 is no stall",
    )
