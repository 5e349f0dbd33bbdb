"""Public adapters against PEFT's logits, and back; see make_hf_peft.py."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxeff.core.tree import paths
from jaxeff.interop import hf, peft
from jaxeff.interop.peft.methods import METHODS
from jaxeff.interop.peft.start import STARTS
from jaxeff.transforms import chain
from tests.closeness import assert_close
from tests.golden.hf_cases import drawn
from tests.golden.peft_cases import CASES, MODELS
from tests.golden.published import FOLDER

LOGITS = 1e-5  # relative RMS, float32 against float32
LIVE = (FOLDER / "peft").is_dir()
UNORDERED = ("target_modules", "feedforward_modules")


@functools.cache
def golden():
    """Name -> array of what PEFT computed."""
    with np.load(FOLDER / "hf_peft.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(case or model, names of its files) -> its folder: the one that has just been saved, or one with the same numbers."""

    @functools.cache
    def folder(name, config, tensors):
        if LIVE:
            return FOLDER / ("peft" if name in CASES else "peft_base") / name
        found = tmp_path_factory.mktemp(name)
        (found / config).write_text(str(golden()[f"{name}/config"]))
        kept = json.loads(str(golden()[f"{name}/tensors"]))
        arrays = {path: drawn(drawn_as, tuple(shape), 0) for path, (drawn_as, shape) in kept.items()}
        save_file(arrays, found / tensors)
        return found

    return folder


@pytest.fixture(scope="module")
def base(stored):
    """Name -> (model, parameters)."""
    return functools.cache(lambda name: hf.load(stored(name, "config.json", "model.safetensors")))


def fields(folder):
    """A configuration, names in one order."""
    found = json.loads((folder / "adapter_config.json").read_text())
    return {name: sorted(x) if name in UNORDERED and isinstance(x, list) else x for name, x in found.items()}


@pytest.mark.parametrize("case", CASES)
def test_peft(case, stored, base, tmp_path):
    folder, (model, params) = stored(case, "adapter_config.json", "adapter_model.safetensors"), base(CASES[case][0])
    transforms, adapted = peft.load(folder, model, params)
    planned = chain(*transforms).plan(model.specs(), model=model).specs
    assert {path: x.shape for path, x in paths(planned).items()} == {
        path: x.shape for path, x in paths(adapted).items()
    }
    y = jax.jit(lambda params, x: model.apply(params, x).y)(adapted, jnp.asarray(golden()[f"{case}/x"]))
    assert_close(y, golden()[f"{case}/y"], LOGITS, "logits")

    saved = FOLDER / "peft_back" / case if LIVE else tmp_path / "saved"
    peft.save(saved, model, transforms, adapted, like=folder)
    before, after = (load_file(each / "adapter_model.safetensors") for each in (folder, saved))
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and np.array_equal(before[name], after[name]) for name in before)
    assert fields(saved) == fields(folder)


@pytest.mark.parametrize("case", CASES)
def test_without_the_folder_it_came_from(case, stored, base, tmp_path):
    folder, (model, params) = stored(case, "adapter_config.json", "adapter_model.safetensors"), base(CASES[case][0])
    transforms, adapted = peft.load(folder, model, params)
    saved = FOLDER / "peft_plain" / case if LIVE else tmp_path / "saved"
    peft.save(saved, model, transforms, adapted, "a/base")
    found, before = fields(saved), fields(folder)
    assert found.pop("base_model_name_or_path") == "a/base"
    again, _ = peft.load(saved, model, params)
    assert again == transforms
    # A regular expression and "all-linear" come back as names, patterns as shorter ones, shares of a run as steps of another one.
    own = ("target_modules", "alpha_pattern", "rank_pattern", "lora_alpha", "total_step", "tinit", "tfinal")
    assert {name: x for name, x in found.items() if name not in own} == {
        name: before[name] for name in found if name not in own
    }


def test_every_kind_and_model_is_compared():
    assert {name for name, _, _ in CASES.values()} == set(MODELS)
    kinds = {json.loads(str(golden()[f"{case}/config"]))["peft_type"] for case in CASES}
    assert kinds == {*METHODS, *STARTS}
