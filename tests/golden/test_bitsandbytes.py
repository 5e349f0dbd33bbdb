"""Matrices in four bits as bitsandbytes stores them, against what it makes of them; see make_bitsandbytes.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxeff.core.errors import UserError
from jaxeff.core.spec import init
from jaxeff.core.tree import paths
from jaxeff.core.weight import dense, is_weight
from jaxeff.interop import bitsandbytes, hf
from jaxeff.mixers import GQA, MLP
from jaxeff.mixers.norm import RMSNorm
from jaxeff.models import LM, Block, Stage
from jaxeff.transforms import NF4, LoRA, chain
from tests.closeness import assert_close
from tests.golden.published import FOLDER

MODEL = LM(
    29, 64, (Stage((Block(GQA(n_heads=4, n_kv_heads=2), MLP(d_hidden=352), RMSNorm(1e-5)),), 2),), tied=False,
    norm=RMSNorm(1e-5),
)  # fmt: skip
CODED = {"self_attn.q_proj": 64, "self_attn.o_proj": 64, "mlp.down_proj": 352}
DTYPE = {"double": jnp.bfloat16, "single": jnp.float32}
QUANTIZED = dict(
    quant_method="bitsandbytes", load_in_4bit=True, load_in_8bit=False, bnb_4bit_quant_type="nf4", llm_int8_threshold=6.0,
    bnb_4bit_use_double_quant=True, bnb_4bit_quant_storage="uint8", bnb_4bit_compute_dtype="bfloat16", _load_in_4bit=True,
)  # fmt: skip
STATE = "model.layers.0.mlp.down_proj.weight.quant_state.bitsandbytes__nf4"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(case, whether plain) -> a folder, with some matrices as bitsandbytes stores them, or as what it makes of them."""
    first = tmp_path_factory.mktemp("first") / "model"
    hf.save(first, MODEL, init(MODEL.specs(), jax.random.key(0)))
    config, tensors = json.loads((first / "config.json").read_text()), load_file(first / "model.safetensors")
    with np.load(FOLDER / "bitsandbytes.npz") as file:
        kept = dict(file)

    def folder(case, plain, change=lambda config, tensors: None):
        found, fields = dict(tensors), config | ({} if plain else {"quantization_config": dict(QUANTIZED)})
        for i in range(2):
            for module, inputs in CODED.items():
                name = f"model.layers.{i}.{module}.weight"
                own = {end.removeprefix(f"{case}/{inputs}"): x for end, x in kept.items() if f"{case}/{inputs}" in end}
                whole = own.pop(".plain")
                found.pop(name)
                found |= {name: whole} if plain else {f"{name}{end}": x for end, x in own.items()}
        change(fields, found)
        made = tmp_path_factory.mktemp(case)
        (made / "config.json").write_text(json.dumps(fields))
        save_file(found, made / "model.safetensors")
        return made

    return folder


@pytest.mark.parametrize("case", ["double", "single"])
def test_weights(case, checkpoint):
    transforms, model, params = bitsandbytes.load(checkpoint(case, False))
    same, plain = hf.load(checkpoint(case, True))
    assert model == same
    assert transforms == (NF4(("blocks/0/mixer/q", "blocks/0/mixer/o"), block=64, double=False),)
    planned = chain(*transforms).plan(model.specs()).specs
    assert {path: x.shape for path, x in paths(planned).items()} == {path: x.shape for path, x in paths(params).items()}
    whole = jax.tree.map(
        lambda w: dense(w, DTYPE[case]).astype(jnp.float32) if is_weight(w) else w, params, is_leaf=is_weight
    )
    jax.tree.map(np.testing.assert_array_equal, whole, plain)
    tokens = jnp.arange(12)[None]
    if case == "single":
        assert_close(model.apply(params, tokens).y, model.apply(plain, tokens).y)


def test_an_adapter_on_top(checkpoint):
    transforms, model, params = bitsandbytes.load(checkpoint("double", False))
    plan = chain(*transforms, LoRA(("blocks/0/mixer/q",), 2)).plan(model.specs())
    adapted = LoRA(("blocks/0/mixer/q",), 2).plan(chain(*transforms).plan(model.specs()).specs)
    adapted = adapted.lift(params, jax.random.key(0))
    assert jax.tree.structure(adapted) == jax.tree.structure(plan.specs)
    np.testing.assert_array_equal(
        model.apply(adapted, jnp.arange(5)[None]).y, model.apply(params, jnp.arange(5)[None]).y
    )


def _set(**fields):
    return lambda config, tensors: config["quantization_config"].update(fields)


def _state(**fields):
    def change(config, tensors):
        state = json.loads(bytes(tensors[STATE])) | fields
        tensors[STATE] = np.frombuffer(json.dumps(state).encode(), np.uint8)

    return change


def _without(end):
    return lambda config, tensors: tensors.pop(STATE.replace("quant_state.bitsandbytes__nf4", end).rstrip("."))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda config, tensors: config.pop("quantization_config"),
            "quantization_config is missing: hf.load reads plain",
        ),
        (_set(bnb_4bit_quant_type="fp4"), "bnb_4bit_quant_type is understood as 'nf4' alone, found 'fp4'"),
        (_set(load_in_4bit=False), "load_in_4bit must be true"),
        (_set(quant_method="gptq"), "load_in_4bit must be true, of quant_method 'bitsandbytes'"),
        (_set(bnb_4bit_quant_storage="float32"), "bnb_4bit_quant_storage is understood as 'uint8' alone"),
        (_set(group_size=4), "group_size=4 not understood"),
        (_without("absmax"), r"down_proj\.weight\.absmax is missing"),
        (_without("nested_absmax"), r"down_proj\.weight\.nested_absmax is missing"),
        (_without(""), r"tensor model\.layers\.0\.mlp\.down_proj\.weight is missing"),
        (_without("quant_state.bitsandbytes__nf4"), r"down_proj\.weight holds bytes, and there is no"),
        (_state(shape=[64, 353]), r"codes and scales of .*down_proj\.weight do not fit its shape \[64, 353\]"),
        (_state(shape=[352, 64]), r"down_proj\.weight has the shape \[352, 64\]; config\.json makes it \[64, 352\]"),
        (_state(dtype="float8"), "no dtype of .*down_proj.weight is called 'float8'"),
        (_state(blocksize="many"), "bitsandbytes__nf4 cannot be read: ValueError"),
    ],
)
def test_checkpoints_that_do_not_fit(checkpoint, change, said):
    with pytest.raises(UserError, match=said):
        bitsandbytes.load(checkpoint("double", False, change))
