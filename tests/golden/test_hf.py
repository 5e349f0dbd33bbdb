"""Public checkpoints against Transformers' logits, whole and step by step, and back; see make_hf.py and make_hf_rwkv7.py."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxeff.interop import hf
from jaxeff.mixers.base import Ctx
from tests.closeness import assert_close
from tests.golden.hf_cases import CASES, FLA, drawn
from tests.golden.published import FOLDER

LOGITS = 1e-5  # relative RMS, float32 against float32; 1e-4 is asked for
PROMPTS = (7, 4)
LIVE = (FOLDER / "hf").is_dir()
# The first configuration of each family; `make parity` computes with all.
FIRST = {model_type: case for case, (model_type, _) in reversed(CASES.items())}.values()
COMPUTED = [case for case in CASES if case in FIRST or LIVE]


def live(case, back=""):
    """The folder where a case was saved by whoever computed it, or, with "_back", is by us."""
    return FOLDER / f"{'hf_fla' if case in FLA else 'hf'}{back}" / case


@functools.cache
def golden(case):
    """name -> array of what Transformers computed for a case."""
    with np.load(FOLDER / f"hf_{CASES[case][0]}.npz") as file:
        return {name.removeprefix(f"{case}/"): file[name] for name in file.files if name.startswith(f"{case}/")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """case -> the folder of a checkpoint: the one that Transformers has just saved, or one with the same config and weights."""

    @functools.cache
    def folder(case):
        if LIVE:
            return live(case)
        found = tmp_path_factory.mktemp(case)
        (found / "config.json").write_text(str(golden(case)["config"]))
        tensors = json.loads(str(golden(case)["tensors"]))
        arrays = {name: drawn(drawn_as, tuple(shape), 0) for name, (drawn_as, shape) in tensors.items()}
        save_file(arrays, found / "model.safetensors")
        return found

    return folder


@pytest.mark.parametrize("case", COMPUTED)
def test_logits(case, checkpoint):
    """Of whole texts; and of prompts of different lengths in one batch, which are then gone on from token by token."""
    model, params = hf.load(checkpoint(case))
    x, y = jnp.asarray(golden(case)["x"]), golden(case)["y"]
    lengths_B, n = np.asarray(PROMPTS), x.shape[1] - max(PROMPTS)
    further_Bn = lengths_B[:, None] + np.arange(n)

    @jax.jit
    def run(params, x):
        whole = model.apply(params, x).y
        inside = jnp.arange(max(PROMPTS))[None] < lengths_B[:, None]
        ctx = Ctx(segment_ids=inside.astype(jnp.int32))
        first = model.apply(params, x[:, : max(PROMPTS)], model.init_state(*x.shape), ctx=ctx)

        def step(state, x_B):
            out = model.apply(params, x_B[:, None], state)
            return out.state, out.y[:, 0]

        _, rest = jax.lax.scan(step, first.state, jnp.take_along_axis(x, further_Bn, 1).T)
        return whole, first.y, jnp.swapaxes(rest, 0, 1)

    whole, prompts, steps = run(params, x)
    assert_close(whole, y, LOGITS, "logits")
    for b, length in enumerate(PROMPTS):
        assert_close(prompts[b, :length], y[b, :length], LOGITS, f"logits of prompt {b}")
        assert_close(steps[b], y[b, further_Bn[b]], LOGITS, f"logits after prompt {b}")


@pytest.mark.parametrize("case", CASES)
def test_back(case, checkpoint, tmp_path):
    folder = checkpoint(case)
    model, params = hf.load(folder)
    saved = live(case, "_back") if LIVE else tmp_path / "saved"
    hf.save(saved, model, params, like=folder)
    before, after = (load_file(each / "model.safetensors") for each in (folder, saved))
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and np.array_equal(before[name], after[name]) for name in before)
    again, _ = hf.load(saved)
    assert again == model


def test_every_family_is_compared():
    assert {CASES[case][0] for case in COMPUTED} == set(hf.FAMILIES)
