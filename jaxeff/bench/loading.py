"""Loading a public checkpoint against reading its file, each in a process of its own."""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import ml_dtypes
import numpy as np

from jaxeff.bench.record import record
from jaxeff.core.errors import lookup
from jaxeff.core.files import write_json
from jaxeff.core.tree import paths
from jaxeff.models.presets import PRESETS

READ = """
import json, resource, sys, time
start = time.perf_counter()
data = open(sys.argv[1], "rb").read()
print(json.dumps({"seconds": time.perf_counter() - start}))
"""
LOAD = """
import json, resource, sys, time
import jax
from jaxeff.interop import hf
jax.devices()
start = time.perf_counter()
model, params = hf.load(sys.argv[1])
jax.block_until_ready(params)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def load(preset: str = "llama-3.2-1b", rounds: int = 5) -> dict:
    """Seconds and peak memory of loading a bfloat16 checkpoint of a preset's sizes, over reading its file and over its size.

    Both read the file from the system's cache, and take turns. The peak is of the whole process, Python and JAX included.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = _written(lookup(PRESETS, preset, "preset")(), folder)
        rows = []
        for i in range(rounds + 1):
            read, loaded = (_ran(code, path) for code, path in ((READ, folder / "model.safetensors"), (LOAD, folder)))
            row = {"read_s": read["seconds"], "load_s": loaded["seconds"], "peak_over_file": loaded["peak"] / size}
            rows += [row | {"ratio": row["load_s"] / row["read_s"]}] if i else []  # the first round fills the cache
    read, loaded = (median(row[name] for row in rows) for name in ("read_s", "load_s"))
    return record(
        "load",
        ours=loaded,
        peer=read,
        unit="s",
        ratio=median(row["ratio"] for row in rows),
        rows=rows,
        gigabytes=size / 1e9,
        peak_over_file=max(row["peak_over_file"] for row in rows),
        meaning="time of loading over that of reading the file; 1 is as quick as the file",
    )


def _written(model, folder: Path) -> int:
    """A checkpoint of this model with numbers of no meaning; its file's bytes."""
    from jaxeff.interop.hf import files
    from jaxeff.interop.hf.save import written

    family, config = written(model)
    write_json(folder / "config.json", config | {"model_type": family.model_type})
    rows, own = {row.tensor.name: row for row in family.tensors(model)}, paths(model.specs())
    some = np.random.default_rng(0).standard_normal(2**20, np.float32).astype(ml_dtypes.bfloat16)
    sizes = {name: 2 * math.prod(row.shape(own)) for name, row in rows.items()}
    files.write(folder, sizes, lambda name: np.resize(some, rows[name].shape(own)))
    return sum(sizes.values())


def _ran(code: str, path: Path) -> dict:
    """What a process that runs `code` prints."""
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)
