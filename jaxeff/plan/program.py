"""The programs that are planned: the training step as a run has it, a prompt read, a token decoded; compiled, never run.

B batch, T time.
"""

import contextlib
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxeff.core.errors import UserError
from jaxeff.core.sharding import batch_sharding, shardings
from jaxeff.core.spec import abstract
from jaxeff.core.target import compiler_options, lowering_for
from jaxeff.core.tree import paths
from jaxeff.evaluate.flops import flops, memory
from jaxeff.mixers.base import Ctx
from jaxeff.train.experiment import Experiment
from jaxeff.train.step import make_step
from jaxeff.train.utilisation import model_flops

Kind = Literal["train", "prefill", "decode"]


class Program(NamedTuple):
    """A program to be compiled. traced: its trace for a mesh. held: name -> bytes of its arguments on one chip. tokens: that one
    execution works off. flops: of the model's matrix products alone: three times the forward pass in training, so that what is
    computed again does not count."""

    traced: Any
    held: dict[str, int]
    tokens: int
    flops: float


class Compiled(NamedTuple):
    """text: of the optimised module. memory: bytes on one chip, by use. seconds: that the compiler took."""

    text: str
    memory: dict[str, int]
    seconds: float


class DoesNotFit(UserError):
    """used, there: bytes of a chip's memory."""

    def __init__(self, used: int, there: int):
        super().__init__(f"needs {used / 2**30:.2f} GiB of a chip's {there / 2**30:.2f} GiB")
        self.used, self.there = used, there


def program(experiment: Experiment, mesh, kind: Kind = "train") -> Program:
    """The program of an experiment on a mesh whose chips need not be there.

    Raises UserError when the mesh has other chips than the experiment's, and when the batch cannot be spread over it.
    """
    with whole_stacks(), lowering_for(mesh.devices.flat[0].platform):
        return _training(experiment, mesh) if kind == "train" else _inference(experiment, mesh, kind)


def compile(made: Program) -> Compiled:
    """Compiles it. Raises DoesNotFit where the chip's memory is too small."""
    start = time.perf_counter()
    try:
        with whole_stacks():
            compiled, text = _compiled(made.traced.lower(lowering_platforms=("tpu",)))
    except jax.errors.JaxRuntimeError as error:
        found = next((match for form in TOO_LARGE if (match := re.search(form, str(error)))), None)
        if found is None:
            raise
        raise DoesNotFit(_bytes(*found.groups()[:2]), _bytes(*found.groups()[2:])) from None
    seconds, found = time.perf_counter() - start, memory(compiled)
    own = {
        "batch and padding": max(0, found["arguments"] - sum(made.held.values())),
        "temporaries": found["temporary"],
        "results": max(0, found["outputs"] - found["aliased"]),
        "program": compiled.memory_analysis().generated_code_size_in_bytes,
    }
    held = made.held | own
    return Compiled(text, held, seconds)


def _compiled(lowered) -> tuple[Any, str]:
    """(the executable, the text of its module as the compiler itself writes it): what it hands over JAX cannot always read."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        written = list(Path(folder).rglob("*.after_codegen.txt"))
        if not written:
            return compiled, compiled.as_text()
        return compiled, max(written, key=lambda path: path.stat().st_size).read_text()


TOO_LARGE = (  # as the compiler says it: needed, there
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
    r"temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
)


@contextlib.contextmanager
def whole_stacks():
    """Instructions know the whole stack of Python that they come from, not ten frames of it."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, -1)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _training(e: Experiment, mesh) -> Program:
    step = make_step(e, mesh)
    shape, spread = (e.data.batch_size, e.data.seq_len), batch_sharding(mesh)
    dtypes = {"tokens": jnp.int32, "segment_ids": jnp.int32, "positions": jnp.int32, "loss_mask": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=spread) for name, dtype in dtypes.items()}
    held = _held(step.abstract)
    return Program(step.step.trace(step.abstract, batch), held, shape[0] * shape[1], model_flops(e, batch))


def _inference(e: Experiment, mesh, kind: Kind) -> Program:
    B, T = e.data.batch_size, e.data.seq_len
    model, ctx = e.model, Ctx(policy=e.policy, mesh=mesh if mesh.size > 1 else None)
    specs, dtype = model.specs(), jnp.dtype(e.policy.compute)
    laid = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    params = jax.tree.map(laid, abstract(specs, dtype), shardings(specs, mesh))
    rows = batch_sharding(mesh).spec
    by_row = lambda x: PartitionSpec(None, *rows) if x.ndim > 1 and x.shape[1] == B else PartitionSpec()  # noqa: E731
    state = jax.eval_shape(lambda: model.init_state(B, T + 1, dtype))
    state = jax.tree.map(lambda x: laid(x, NamedSharding(mesh, by_row(x))), state)
    length = T if kind == "prefill" else 1
    tokens = jax.ShapeDtypeStruct((B, length), jnp.int32, sharding=batch_sharding(mesh))

    def run(params, tokens, state):
        out = model.hidden(params, tokens, state, ctx=ctx)
        return model.logits(params, out.y[:, -1:]), out.state

    with lowering_for("cpu"):
        once = flops(run, params, tokens, state)
    traced = jax.jit(run, donate_argnums=2, compiler_options=compiler_options(mesh)).trace(params, tokens, state)
    held = {"weights": sum(_held({"params": params}).values()), "state": sum(_held({"params": state}).values())}
    return Program(traced, held, B * length, once["matmul"])


NAMES = {"params": "weights", "frozen": "frozen weights", "ema": "averaged weights", "opt": "optimizer"}


def _held(state) -> dict[str, int]:
    """Bytes on one chip, by use."""
    found: dict[str, int] = {}
    for path, leaf in paths(state).items():
        name = NAMES.get(path.partition("/")[0], "others")
        found[name] = found.get(name, 0) + math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return found


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 2 ** (10 * " KMGT".index(unit or " ")))
