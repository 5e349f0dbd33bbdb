"""What one waits for before the first step: importing the package, compiling a deep model."""

import itertools
import subprocess
import sys
import time
from statistics import median

import jax

from jaxeff.bench.record import record
from jaxeff.bench.timing import PAUSE
from jaxeff.bench.training import Size, random_batch
from jaxeff.data import TextData
from jaxeff.evaluate.timing import alternate, summary
from jaxeff.models.lm import LM
from jaxeff.models.stack import Stage
from jaxeff.train.experiment import Experiment
from jaxeff.train.optim import Optim
from jaxeff.train.step import make_step

_FRESH = itertools.count()


def import_time(rounds: int = 7) -> dict:
    """Seconds of `import jaxeff` against `import jax`, each in fresh interpreters that take turns."""
    clocks = {name: lambda name=name: import_seconds(name) for name in ("jax", "jaxeff")}
    times = alternate(clocks, rounds, pause=PAUSE)
    middle = {name: median(values) for name, values in times.items()}
    rows = [{"statement": f"import {name}", "median_s": middle[name], "minimum_s": min(times[name])} for name in times]
    return record(
        "import",
        ours=middle["jaxeff"],
        peer=middle["jax"],
        unit="s",
        rows=rows,
        ratio=middle["jaxeff"] / middle["jax"],
        difference_s=min(times["jaxeff"]) - min(times["jax"]),
        meaning="time of `import jaxeff` over `import jax`; 1 would be free",
    )


def import_seconds(module: str) -> float:
    """Seconds that a fresh interpreter spends in `import module`."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def compile_time(shallow: int = 4, deep: int = 32, d_model: int = 256, rounds: int = 2) -> dict:
    """Seconds to trace and compile the training step of a deep model against a shallow one; layers are scanned."""
    clocks = {n: lambda n=n: compile_seconds(n, d_model) for n in (shallow, deep)}
    times = summary(alternate(clocks, rounds, pause=PAUSE))
    rows = [{"layers": n, "median_s": times[n][0], "minimum_s": times[n][1]} for n in times]
    return record(
        "compile",
        ours=times[deep][1],
        peer=times[shallow][1],
        unit="s",
        rows=rows,
        ratio=times[deep][1] / times[shallow][1],
        meaning=f"compile time of {deep} layers over that of {shallow}; 1 is no growth",
    )


def compile_seconds(layers: int, d_model: int, time_steps: int = 256, batch: int = 4) -> float:
    """Seconds from nothing to the compiled training step of a GQA model."""
    # Another constant each time, so that no cache knows the program.
    optim = Optim(b2=0.95 - 1e-6 * next(_FRESH))
    model, data = (
        LM(vocab_size=1024, d_model=d_model, stages=(Stage(("gqa",), layers),)),
        TextData(seq_len=time_steps, batch_size=batch),
    )
    experiment = Experiment(model, data, optim=optim)
    step = make_step(experiment)
    shapes = jax.eval_shape(lambda: random_batch(Size(d_model, time_steps, batch)))
    start = time.perf_counter()
    step.step.lower(step.abstract, shapes).compile()
    return time.perf_counter() - start
