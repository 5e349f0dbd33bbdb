"""The smallest run that has everything: used by all tests of training."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.data import Bytes, TextData
from jaxeff.data.grammar import Grammar
from jaxeff.mixers import GQA, MLP
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim
from jaxeff.train.overrides import override
from jaxeff.train.step import make_step, put, start

ROOT = Path(__file__).parents[2]
# What a run must repeat bit for bit.
REPEATED = ("step", "loss", "grad_norm", "lr", "tokens", "skipped", "eval_bits_per_byte", "eval_loss", "eval_accuracy")

CONFIG = """
from tests.train.tiny import experiment


def config():
    return experiment()
"""


def experiment(*assignments: str) -> Experiment:
    """Two narrow layers on sentences of a grammar; `assignments` as for --set."""
    mixer = GQA(n_heads=4, n_kv_heads=2, head_dim=4)
    e = Experiment(
        model=LM(vocab_size=259, d_model=16, stages=(Stage((Block(mixer, MLP(d_hidden=32)),), 2),)),
        data=TextData(source=Grammar(n_documents=60), tokenizer=Bytes(), seq_len=32, batch_size=4),
        optim=Optim(lr=1e-2),
        train=Train(steps=8, log_every=1, eval_every=4, save_every=4, eval_batches=2),
    )
    return override(e, assignments)


def losses_from(begun, e: Experiment, n: int) -> list[float]:
    """Of n steps from a state, which is copied to where the experiment's mesh has it."""
    step = make_step(e)
    state = jax.tree.map(lambda x, laid: jax.device_put(jnp.copy(x), laid.sharding), begun, step.abstract)
    found = []
    for batch in batches(e, n):
        state, out = step.step(state, put(batch, step.mesh))
        found.append(float(out["loss"]))
    return found


def batches(e: Experiment, n: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Rows without structure beyond a skewed distribution of tokens, the last third of some of them padding."""
    rng, (b, t) = np.random.default_rng(seed), (e.data.batch_size, e.data.seq_len)
    found = []
    for _ in range(n):
        tokens = np.minimum(rng.geometric(0.05, (b, t)) + 2, e.model.vocab_size - 1).astype(np.int32)
        inside = np.arange(t)[None] < np.where(rng.random((b, 1)) < 0.5, t, 2 * t // 3)
        last = np.arange(t)[None] == inside.sum(1, keepdims=True) - 1
        found.append({
            "tokens": np.where(inside, tokens, 0).astype(np.int32),
            "segment_ids": inside.astype(np.int32),
            "positions": np.where(inside, np.arange(t)[None], 0).astype(np.int32),
            "loss_mask": (inside & ~last).astype(np.float32),
        })  # fmt: skip
    return found


def repeated(lines) -> list[dict]:
    """The fields of metrics that do not depend on the clock."""
    return [{name: line[name] for name in REPEATED if name in line} for line in lines]


def same(a, b) -> bool:
    """Whether two trees are equal bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def alike(a, b) -> bool:
    """Whether two trees are equal but for the last bits: loops for other shard shapes may fuse other products and sums."""
    pairs = [(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    exact = all(np.array_equal(x, y) for x, y in pairs if not np.issubdtype(x.dtype, np.floating))
    return exact and all(np.allclose(x, y, rtol=3e-7, atol=0) for x, y in pairs if np.issubdtype(x.dtype, np.floating))


def bad_steps_change_nothing(e: Experiment) -> None:
    """A step whose loss is not finite changes nothing but the counters, and the next good one goes on."""
    step = make_step(e)
    state, _ = step.step(start(e, step), put(batches(e, 1)[0], step.mesh))
    kept = jax.tree.map(np.asarray, (state.params, state.opt, state.ema))
    bad = batches(e, 1)[0] | {"loss_mask": np.full((4, 32), np.nan, np.float32)}
    for i in (1, 2):
        state, out = step.step(state, put(bad, step.mesh))
        assert (int(out["skipped"]), int(out["bad"]), int(state.step)) == (i, i, 1 + i)
        assert not np.isfinite(float(out["loss"]))
        assert same((state.params, state.opt, state.ema), kept)
    state, out = step.step(state, put(batches(e, 1)[0], step.mesh))
    assert (int(out["skipped"]), int(out["bad"])) == (2, 0)
    assert not same(state.params, kept[0])


def without(e: Experiment, **fields) -> Experiment:
    """`dataclasses.replace`, for what --set cannot say."""
    return dataclasses.replace(e, **fields)


def environment(folder: Path) -> dict[str, str]:
    """For subprocesses: one device, programs compiled as quickly as those of most tests, and caches for the second start."""
    from tests.shipped import QUICK, QUICKLY  # not where a config imports this file: it compiles

    return os.environ | {
        "XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in QUICKLY.items()),
        QUICK.upper(): "1",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAXEFF_CACHE": str(folder / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONWARNINGS": "default",
    }


def command(*words) -> list[str]:
    """`jaxeff ...` as a subprocess."""
    return [sys.executable, "-m", "jaxeff.cli", *map(str, words)]


def run(folder: Path, *words, **options) -> subprocess.CompletedProcess:
    """`jaxeff ...`, its output as text."""
    options = dict(env=environment(folder), cwd=folder, capture_output=True, text=True, timeout=120) | options
    return subprocess.run(command(*words), **options)


def stop_after(n: int):
    """`stop` that says yes after the n-th step of a start."""
    calls = itertools.count(1)
    return lambda: next(calls) >= n
