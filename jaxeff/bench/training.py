"""Our training step against a peer's, sizes and work alike, in turns. B batch, T time, D model.

Both do forward, backward, clipping by global norm and AdamW on a batch of random tokens; embeddings are tied. The peer waits
for a request while we step, and we wait while it steps, so that neither disturbs the other and both see the same machine.
"""

import contextlib
import dataclasses

import numpy as np

from jaxeff.bench.lists import numbers, pairs
from jaxeff.bench.pairs import PAIRS
from jaxeff.bench.peer import PROGRAMS, Peer
from jaxeff.bench.record import record
from jaxeff.bench.timing import MATMUL, PAUSE, matmul_clock
from jaxeff.core.errors import lookup
from jaxeff.core.precision import POLICIES
from jaxeff.core.spec import count
from jaxeff.data import TextData
from jaxeff.evaluate.timing import alternate, seconds, summary
from jaxeff.lab.measure import Training
from jaxeff.models.lm import LM
from jaxeff.train.experiment import Experiment, Train


@dataclasses.dataclass(frozen=True)
class Size:
    """What one row of the table measures. n_layers and vocab_size are the same in all of them."""

    d_model: int
    time: int
    batch: int
    n_layers: int = 4
    vocab_size: int = 1024
    mixer: str = "gqa"

    @property
    def lm(self) -> LM:
        return PAIRS[self.mixer].lm(self.vocab_size, self.d_model, self.n_layers)

    @property
    def flops(self) -> float:
        """FLOPs of the matrix products of one step with weights, 3 x forward, 2 per weight and token; and, of attention, 4 D per
        visible pair and layer. What a recurrence needs beside is not counted: it differs from form to form."""
        tokens, pairs = self.batch * self.time, self.batch * self.time * (self.time + 1) / 2
        attention = 4 * self.d_model * pairs * self.n_layers if self.mixer == "gqa" else 0
        return 3 * (2 * count(self.lm.specs()) * tokens + attention)

    def __str__(self) -> str:
        return f"{self.mixer}, D {self.d_model}, T {self.time} x batch {self.batch}"


def train(
    sizes: str = "256x4,1024x1",
    d_model: str = "256",
    mixer: str = "gqa",
    dtype: str = "float32",
    peer: str = "hf",
    peer_python: str | None = None,
    rounds: int = 10,
) -> dict:
    """Milliseconds a training step: ours against the peer's (`hf`: the same model of Transformers in torch; `none`).

    `mixer` names models of `bench.pairs` (gqa: Llama with SDPA attention), `sizes` are time x batch, `d_model` widths, all of them
    lists with commas. `peer_python` is the interpreter of the peers, by
    default $JAXEFF_PEER_PYTHON, else .venv-bench/bin/python, which `make bench-env` makes.
    """
    lookup(POLICIES, dtype, "dtype")
    for name in mixer.split(","):
        lookup(PAIRS, name, "pair of models")
    asked = [
        Size(width, *pair, mixer=name)
        for name in mixer.split(",")
        for width in numbers(d_model)
        for pair in pairs(sizes)
    ]
    rows, versions = [], {}
    lookup(PROGRAMS | {"none": None}, peer, "peer")
    with contextlib.nullcontext() if peer == "none" else Peer(peer, peer_python) as other:
        for size in asked:
            row, versions = compare(size, dtype, other, rounds)
            rows.append(row)
    worst = min(rows, key=lambda row: row.get("ratio", 0.0))
    return record(
        "train",
        ours=worst["ours_ms"],
        peer=worst.get("peer_ms"),
        unit="ms per step",
        ratio=worst.get("ratio"),
        rows=rows,
        dtype=dtype,
        rounds=rounds,
        peer_versions=versions,
        meaning="the peer's time over ours, medians, at the size where it is least; above 1 we are ahead",
    )


def compare(size: Size, dtype: str, other: Peer | None, rounds: int) -> tuple[dict, dict]:
    """(a row of the table, the peer's versions). Shares are of the matrix product's speed measured in the same rounds."""
    clocks, versions = {"step": step_clock(size, dtype), "matmul": matmul_clock(dtype)}, {}
    if other is not None:
        pair = PAIRS[size.mixer]
        sizes = {name: value for name, value in dataclasses.asdict(size).items() if name != "mixer"}
        answer = other.ask(
            do="setup", name="model", model=pair.peer, dtype=dtype, fields=pair.fields(size.d_model), **sizes
        )
        versions = answer["versions"]
        if answer["n_params"] != count(size.lm.specs()):
            raise AssertionError(f"{size}: the peer has {answer['n_params']} parameters, we {count(size.lm.specs())}")
        clocks["peer step"] = lambda: other.ask(do="step", name="model")["seconds"]
        clocks["peer matmul"] = lambda: other.ask(do="matmul", n=MATMUL, dtype=dtype)["seconds"]
    times = summary(alternate(clocks, rounds, warmup=2, pause=PAUSE))
    if other is not None:
        other.ask(do="drop", name="model")
    return _row(size, times), versions


def _row(size: Size, times: dict[str, tuple[float, float]]) -> dict:
    def share(prefix: str) -> float:
        return size.flops / times[prefix + "step"][1] * times[prefix + "matmul"][1] / (2 * MATMUL**3)

    ours, least = times["step"]
    row = {"size": str(size), "ours_ms": 1e3 * ours, "ours_least_ms": 1e3 * least}
    if "peer step" in times:
        peer, peer_least = times["peer step"]
        row |= {
            "peer_ms": 1e3 * peer,
            "peer_least_ms": 1e3 * peer_least,
            "ratio": peer / ours,
            "ratio_of_least": peer_least / least,
        }
    row |= {"matmul_gflops": 2e-9 * MATMUL**3 / times["matmul"][1], "share_of_matmul": share("")}
    if "peer step" in times:
        row |= {
            "peer_matmul_gflops": 2e-9 * MATMUL**3 / times["peer matmul"][1],
            "peer_share_of_matmul": share("peer "),
        }
    return row


def step_clock(size: Size, dtype: str):
    """A clock of one training step of ours on a batch of one segment a row."""
    data = TextData(seq_len=size.time, batch_size=size.batch)
    job = Training(Experiment(size.lm, data, train=Train(steps=1000), precision=dtype), random_batch(size))
    return lambda: seconds(job.run)


def random_batch(size: Size) -> dict[str, np.ndarray]:
    """A full batch of random tokens, one segment a row."""
    shape = (size.batch, size.time)
    mask = np.ones(shape, np.float32)
    mask[:, -1] = 0
    return {
        "tokens": np.random.default_rng(0).integers(0, size.vocab_size, shape, np.int32),
        "segment_ids": np.ones(shape, np.int32),
        "loss_mask": mask,
        "positions": np.broadcast_to(np.arange(size.time, dtype=np.int32), shape).copy(),
    }
