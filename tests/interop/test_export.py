"""Exported models, run by an interpreter that has no jaxeff."""

import json
import os
import subprocess
import sysconfig
import venv

import jax
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.spec import abstract
from jaxeff.interop.export import export
from jaxeff.models import LM, Stage, generate
from jaxeff.transforms import Int8, PrefixTuning, chain

PROMPTS = np.array([[3, 1, 4, 1, 5, 0], [9, 2, 6, 0, 0, 0]], np.int32)
LENGTHS = np.array([5, 3], np.int32)
RUN = """
import json, pathlib, sys
import jax, jax.export, numpy as np, safetensors.flax

try:
    import jaxeff
    raise SystemExit("jaxeff is there")
except ImportError:
    pass
folder = pathlib.Path(sys.argv[1])
weights = safetensors.flax.load_file(folder / "weights.safetensors")
prefill, decode = (jax.export.deserialize((folder / f"{n}.bin").read_bytes()) for n in ("prefill", "decode"))
prompts, lengths = (np.array(x, np.int32) for x in json.loads((folder / "prompts.json").read_text()))
logits, state = jax.jit(prefill.call)(weights, prompts, lengths)
tokens, step = [np.argmax(logits, -1)], jax.jit(decode.call)
for _ in range(4):
    logits, state = step(weights, tokens[-1].astype(np.int32), state)
    tokens.append(np.argmax(logits, -1))
print(json.dumps(np.stack(tokens, 1).tolist()))
"""
# One model with what others have one by one: attention, recurrences, learned positions, weights in few bits, a learned start.
MODEL = LM(11, 16, (Stage(("gqa", "mamba2"), 2), Stage(("rwkv7",))), learned_positions=True, max_positions=20)
TRANSFORMS = (Int8(), PrefixTuning(slots=2))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An interpreter with this environment's packages but jaxeff: what a `.pth` file adds, editable installs are not among."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    place = next((folder / "lib").glob("python*")) / "site-packages"
    (place / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "bin" / "python"


def test_files_run_without_jaxeff(bare, tmp_path):
    plan = chain(*TRANSFORMS).plan(MODEL.specs(), model=MODEL)
    r = np.random.default_rng(0)
    size = {"int8": 3.0, "float32": 0.3}
    number = lambda spec: (size[spec.dtype.name] * r.standard_normal(spec.shape)).astype(spec.dtype)
    params = jax.tree.map(number, abstract(plan.specs))
    folder = tmp_path / "model"
    export(folder, MODEL, params, batch=2, prompt=6, max_len=12, ids={"eos": 2})
    (folder / "prompts.json").write_text(json.dumps([PROMPTS.tolist(), LENGTHS.tolist()]))
    quick = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": ""}
    told = subprocess.run(
        [bare, "-c", RUN, folder], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=quick
    )
    assert told.returncode == 0, told.stderr
    texts = json.loads(told.stdout)
    assert (
        texts == generate(MODEL, params, PROMPTS, 5, prompt_lengths=LENGTHS).tolist()
        and len(set(texts[0] + texts[1])) > 4
    )
    model = json.loads((folder / "model.json").read_text())
    assert model["platforms"] == ["cpu"] and model["ids"] == {"eos": 2} and model["max_len"] == 12


def test_exports_that_cannot_be(tmp_path):
    lm, params = MODEL, abstract(MODEL.specs())
    with pytest.raises(UserError, match="1 <= prompt < max_len, found 1, 12, 12"):
        export(tmp_path / "x", lm, params, prompt=12, max_len=12)
    with pytest.raises(UserError, match="max_len=64 needs 64 positions; the model has 20"):
        export(tmp_path / "x", lm, params, prompt=12, max_len=64)
    (tmp_path / "y").write_text("")
    with pytest.raises(UserError, match="holds something already"):
        export(tmp_path, lm, params, prompt=2, max_len=12)
    assert not (tmp_path / "x").exists()
