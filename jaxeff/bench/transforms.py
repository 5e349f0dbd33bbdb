"""The training step with adapters against that of all weights, and LoRA against peft's, in turns. T time, B batch, D model.

All of them train the same Llama-like model on a batch of random tokens: forward, backward, clipping by global norm, AdamW; but
lomo and adalomo, which update all weights within the backward pass, without clipping. A method is what an Experiment has beside
the model; another row of the table is another entry of METHODS.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from jaxeff.bench.lists import numbers, pairs
from jaxeff.bench.pairs import PAIRS
from jaxeff.bench.peer import Peer
from jaxeff.bench.record import record
from jaxeff.bench.timing import PAUSE
from jaxeff.bench.training import Size, random_batch
from jaxeff.core.errors import lookup
from jaxeff.core.precision import POLICIES
from jaxeff.core.spec import count
from jaxeff.data import TextData
from jaxeff.evaluate.flops import memory
from jaxeff.evaluate.timing import alternate, seconds, summary
from jaxeff.lab.measure import Training
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim
from jaxeff.transforms import DoRA, LoRA, QLoRA
from jaxeff.transforms.few_bits import PackedWeight
from jaxeff.transforms.node import nodes_of
from jaxeff.transforms.plan import weights

MIB = 2**20
RULES = ("blocks/.*/mixer/(q|k|v|o)", "blocks/.*/mlp/(up|gate|down)")
PEFT_TARGETS = [f"{name}_proj" for name in ("q", "k", "v", "o", "up", "gate", "down")]
FULL, PEFT = "full", "lora of peft"

# name -> fields of the Experiment, of a rank
METHODS: dict[str, Callable[[int], dict[str, Any]]] = {
    FULL: lambda rank: {},
    "lomo": lambda rank: dict(optim=Optim("lomo", clip=None)),
    "adalomo": lambda rank: dict(optim=Optim("adalomo", clip=None)),
    "norms": lambda rank: dict(trainable=(".*norm/scale",)),
    "lora": lambda rank: dict(transforms=(LoRA(RULES, rank),)),
    "dora": lambda rank: dict(transforms=(DoRA(RULES, rank),)),
    "qlora": lambda rank: dict(transforms=(QLoRA(RULES, rank),)),
}
PEERS = {"none": None, "peft": "hf"}  # name -> the program it is asked of


def transforms(
    methods: str = "lora,dora,qlora",
    sizes: str = "256x4,1024x1",
    d_model: str = "256",
    rank: int = 8,
    dtype: str = "float32",
    peer: str = "none",
    peer_python: str | None = None,
    rounds: int = 10,
) -> dict:
    """Milliseconds, memory and bytes of a training step with adapters, against one of all weights.

    `methods` are measured beside training of all weights (full); `sizes` are time x batch, `d_model` widths, all of them lists with
    commas. Adapters of `rank` stand beside q, k, v, o and the MLP's up, gate and down. `--peer peft` measures LoRA by peft in torch
    too, on the same model, with the interpreter `peer_python`, see `jaxeff bench train`.
    """
    lookup(POLICIES, dtype, "dtype")
    names = list(dict.fromkeys((FULL, *methods.split(","))))
    for name in names:
        lookup(METHODS, name, "method")
    asked = [Size(width, *pair) for width in numbers(d_model) for pair in pairs(sizes)]
    program, rows, versions = lookup(PEERS, peer, "peer"), [], {}
    with contextlib.nullcontext() if program is None else Peer(program, peer_python) as other:
        for size in asked:
            more, versions = compare(size, names, rank, dtype, other, rounds)
            rows += more
    first = names[1] if len(names) > 1 else FULL
    worst = max((row for row in rows if row["method"] == first), key=lambda row: row["of full"])
    full = next(row for row in rows if row["size"] == worst["size"] and row["method"] == FULL)
    return record(
        "transforms",
        ours=worst["ms"],
        peer=full["ms"],
        unit="ms per step",
        ratio=worst["of full"],
        rows=rows,
        dtype=dtype,
        rank=rank,
        rounds=rounds,
        peer_versions=versions,
        meaning=f"the step of {first} over that of all weights, medians, at the size where it is largest; less is better",
    )


def compare(
    size: Size, names: list[str], rank: int, dtype: str, other: Peer | None, rounds: int
) -> tuple[list[dict], dict[str, str]]:
    """(the rows of one size, of each method and of the peer; the peer's versions)."""
    jobs = {name: Training(experiment(size, name, rank, dtype), random_batch(size)) for name in names}
    clocks, versions = {name: lambda job=job: seconds(job.run) for name, job in jobs.items()}, {}
    if other is not None:
        versions = set_up(other, size, rank, dtype)
        clocks[PEFT] = lambda: other.ask(do="step", name="model")["seconds"]
    times = summary(alternate(clocks, rounds, warmup=2, pause=PAUSE))
    if other is not None:
        other.ask(do="drop", name="model")
    n_weights = count(size.lm.specs())
    return [
        _row(size, name, times) | (costs(jobs[name], n_weights) if name in jobs else {}) for name in times
    ], versions


def _row(size: Size, name: str, times: dict[str, tuple[float, float]]) -> dict[str, Any]:
    (middle, least), (full, full_least) = times[name], times[FULL]
    row = {
        "size": f"{size.time}x{size.batch}, D {size.d_model}",
        "method": name,
        "ms": 1e3 * middle,
        "least ms": 1e3 * least,
        "of full": middle / full,
        "of full, least": least / full_least,
    }
    if name == "lora" and PEFT in times:
        peft, peft_least = times[PEFT]
        row |= {"times peft": peft / middle, "times peft, least": peft_least / least}
    return row


def experiment(size: Size, method: str, rank: int, dtype: str) -> Experiment:
    """The run whose step a row of the table measures."""
    data = TextData(seq_len=size.time, batch_size=size.batch)
    return Experiment(size.lm, data, train=Train(steps=1000), precision=dtype, **METHODS[method](rank))


def set_up(other: Peer, size: Size, rank: int, dtype: str) -> dict[str, str]:
    """Makes the same model with the same adapters at the peer, and returns its versions. Raises AssertionError where the numbers
    of trained parameters differ."""
    pair = PAIRS[size.mixer]
    sizes = {name: value for name, value in dataclasses.asdict(size).items() if name != "mixer"}
    lora = dict(rank=rank, alpha=LoRA().alpha, targets=PEFT_TARGETS)
    fields = pair.fields(size.d_model)
    answer = other.ask(do="setup", name="model", model=pair.peer, dtype=dtype, fields=fields, lora=lora, **sizes)
    run = experiment(size, "lora", rank, dtype)
    ours = count(run.weights.split(run.specs)[0])
    if answer["n_trained"] != ours:
        raise AssertionError(f"{size}: the peer trains {answer['n_trained']} parameters, we {ours}")
    return answer["versions"]


def costs(job: Training, n_weights: int) -> dict[str, Any]:
    """What a step needs and keeps, from its compiled program and its state, for a model of so many weights."""
    state, found = job.state, memory(job.compiled)
    trained, optimizer = sum(x.size for x in jax.tree.leaves(state.params)), bytes_of(state.opt)
    held = bytes_of((state.params, state.frozen))
    row = {
        "temporary MiB": None if found is None else found["temporary"] / MIB,
        "trained": trained,
        "optimizer bytes": optimizer,
        "bytes a trained": optimizer / trained,
        "weights MiB": held / MIB,
        "bits a weight": 8 * held / n_weights,
    }
    packed = list(quantized(state.frozen))
    if packed:
        stood_for = sum(math.prod(node.plain.shape) for node in packed)
        row["bytes a quantized"] = bytes_of(packed) / stood_for
    return row


def quantized(params):
    """The weights in few bits of a tree, wherever they stand."""
    for weight in weights(params).values():
        yield from (node for node in nodes_of(weight) if isinstance(node, PackedWeight))


def bytes_of(tree) -> int:
    """What its arrays take."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
