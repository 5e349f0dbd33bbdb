"""Public adapters that are not as they should be, and adapters of ours that PEFT does not have: one line that names what. Agreement
with PEFT is in tests/golden."""

import json
import re
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxeff.core.errors import UserError
from jaxeff.core.spec import init
from jaxeff.core.tree import map_with_path
from jaxeff.interop import peft
from jaxeff.mixers import GQA, MLP
from jaxeff.mixers.norm import RMSNorm
from jaxeff.models import LM, Block, Stage
from jaxeff.models.presets.mamba import mamba
from jaxeff.transforms import (
    IA3,
    NF4,
    AdaLoRA,
    DoRA,
    LoRA,
    Mask,
    PrefixTuning,
    QLoRA,
    StateTuning,
    VeRA,
    chain,
)

MODEL = LM(
    29, 24, (Stage((Block(GQA(n_heads=6, n_kv_heads=2), MLP(d_hidden=20), RMSNorm(1e-5)),), 2),), tied=False,
    norm=RMSNorm(1e-5),
)  # fmt: skip
BIASED = LM(
    29, 24, (Stage((Block(GQA(n_heads=6, n_kv_heads=2, biases=("q", "k", "v")), MLP(d_hidden=20), RMSNorm(1e-5)),), 2),),
    tied=False, norm=RMSNorm(1e-5),
)  # fmt: skip
MAMBA = mamba(vocab_size=29, d_model=24, n_layers=2)
Q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


def lifted(transform, model=MODEL):
    """The parameters of an adapted model, no two arrays alike."""
    specs = chain(transform).plan(model.specs(), model=model).specs

    def one(path, spec):
        numbers = np.linspace(-0.5, 1.0, spec.size).reshape(spec.shape) + crc32(path.encode()) % 7
        return jnp.asarray(numbers, spec.dtype or jnp.float32)

    return map_with_path(one, specs)


@pytest.fixture(scope="module")
def params():
    """Of MODEL."""
    return init(MODEL.specs(), jax.random.key(0))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved adapter of ours and its parameters."""
    folder, lora = tmp_path_factory.mktemp("made") / "adapter", LoRA(("blocks/0/mixer/(q|v)",), 2)
    adapted = lifted(lora)
    peft.save(folder, MODEL, lora, adapted, "a/base")
    return folder, adapted


@pytest.fixture
def broken(made, tmp_path):
    """A copy to break: its folder; change(config or tensors) -> what is written there instead."""

    def change(config=lambda c: c, tensors=lambda t: t):
        fields = json.loads((made[0] / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps(config(fields)))
        save_file(tensors(load_file(made[0] / "adapter_model.safetensors")), tmp_path / "adapter_model.safetensors")
        return tmp_path

    return change


def test_an_adapter_trained_here_goes_out_and_comes_back(made):
    folder, adapted = made
    transforms, again = peft.load(folder, MODEL, without(adapted))
    assert transforms == (LoRA(("blocks/0/mixer/q", "blocks/0/mixer/v"), 2),)
    assert jax.tree.structure(again) == jax.tree.structure(adapted)
    jax.tree.map(np.testing.assert_array_equal, again, adapted)
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "a/base" and fields["target_modules"] == ["q_proj", "v_proj"]


def without(adapted):
    """The base."""
    return jax.tree.map(lambda w: getattr(w, "base", w), adapted, is_leaf=lambda w: hasattr(w, "base"))


def test_a_base_in_few_bits(made, params, tmp_path):
    few = NF4(("blocks/.*/mixer/q",), block=8).plan(MODEL.specs())
    quantized = few.lift(params, jax.random.key(0))
    transforms, adapted = peft.load(made[0], MODEL, quantized, specs=few.specs)
    assert adapted["blocks"]["0"]["mixer"]["q"].base is quantized["blocks"]["0"]["mixer"]["q"]
    both = (NF4(("blocks/.*/mixer/q",), block=8), *transforms)
    peft.save(tmp_path / "saved", MODEL, both, adapted)
    before, after = (load_file(each / "adapter_model.safetensors") for each in (made[0], tmp_path / "saved"))
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(kasa=1), "kasa=1 not understood"),
        (dict(use_rsloar=True), "use_rsloar=True not understood.*did you mean 'use_rslora'"),
        (dict(peft_type="LOAR"), "no peft_type that can be read is called 'LOAR'; did you mean 'LORA'"),
        (dict(peft_type="LOHA"), "no peft_type that can be read is called 'LOHA'"),
        (dict(peft_type=None), "peft_type is missing"),
        (dict(task_type="SEQ_CLS"), "task_type is understood as 'CAUSAL_LM' alone, found 'SEQ_CLS'"),
        (dict(bias="all"), "bias is understood as 'none' alone, found 'all'"),
        (dict(lora_bias=True), "lora_bias is understood as False alone"),
        (dict(use_qalora=True), "use_qalora is understood as False alone"),
        (dict(modules_to_save=["lm_head"]), r"modules_to_save are layers that were trained whole .* found \['lm_head'\]"),
        (dict(init_lora_weights="pissa"), "init_lora_weights is understood as True or False or 'gaussian' alone, found 'pissa'"),
        (dict(trainable_token_indices=[1]), "trainable_token_indices is understood as"),
        (dict(layer_replication=[[0, 1]]), "layer_replication is understood as"),
        (dict(r="2"), "r must be of type int, found '2'"),
        (dict(r=0), "LoRA.rank must be at least 1"),
        (dict(rank_pattern={"q_proj": "2"}), "rank_pattern must give each layer a number above 0"),
        (dict(rank_pattern={"q_(": 2}), "rank_pattern has .*q_\\(.*, which is no regular expression"),
        (dict(rank_pattern={"0.self_attn.q_proj": 4}),
         r"0\.self_attn\.q_proj has an adapter of \(4, 16\.0\) and .* of \(2, 16\.0\), but both lie in blocks/0/mixer/q"),
        (dict(alpha_pattern={"1.self_attn.v_proj": 3}), r"but both lie in blocks/0/mixer/v"),
        (dict(layers_to_transform=[1]), r"0\.self_attn\.q_proj has no adapter and .*1\.self_attn\.q_proj has an adapter"),
        (dict(layers_to_transform="1"), "layers_to_transform must be a number or a list of numbers, found '1'"),
        (dict(layers_to_transform=[1], layers_pattern="block"), "target_modules chooses no layer"),
        (dict(layers_to_transform=[1], layers_pattern=["layers("]), "layers_pattern has .* which is no regular expression"),
        (dict(exclude_modules=["layers.1.self_attn.v_proj"]), "1.self_attn.v_proj has no adapter"),
        (dict(target_modules=None), "target_modules must name layers, found None"),
        (dict(target_modules=3), "target_modules must be a regular expression or a list of names, found 3"),
        (dict(target_modules="q_("), "target_modules has 'q_\\(', which is no regular expression"),
        (dict(target_modules=["q_prj"]), "target_modules chooses no layer of this model; did you mean 'q_proj'"),
        (dict(target_modules=["q_proj", "lm_head"]), "target_modules chooses lm_head: embeddings and heads"),
        (dict(target_modules=["q_proj", "v_proj", "k_proj"]), r"4 tensors are missing, the first is .*k_proj\.lora_A"),
        (dict(target_modules=["q_proj"]), r"4 tensors have no place .* the first is .*v_proj"),
        (dict(r=3), r"lora_A\.weight has the shape \[2, 24\]; adapter_config\.json makes it \[3, 24\]"),
        (dict(use_dora=True), "4 tensors are missing, the first is .*q_proj.lora_magnitude_vector"),
        (dict(peft_type="VERA", r=2, lora_alpha=None, use_rslora=None, use_dora=None, lora_dropout=None, rank_pattern=None,
              alpha_pattern=None), r"tensor base_model\.vera_A is missing; PEFT draws it again"),
        (dict(peft_type="IA3"), "not understood"),
    ],
)  # fmt: skip
def test_configurations_that_would_be_another_adapter(broken, params, change, said):
    folder = broken(lambda fields: {name: v for name, v in (fields | change).items() if v is not None})
    with pytest.raises(UserError, match=said) as error:
        peft.load(folder, MODEL, params)
    assert "\n" not in str(error.value)


def test_all_linear_layers(broken, params):
    folder = broken(lambda fields: fields | dict(target_modules="all-linear"))
    with pytest.raises(UserError, match=r"20 tensors are missing, the first is .*0\.self_attn\.k_proj\.lora_A"):
        peft.load(folder, MODEL, params)


def test_tensors(broken, params):
    def moved(tensors):
        tensors["base_model.model.model.layers.0.self_attn.q_prj.lora_A.weight"] = tensors.pop(Q.format(0, "A"))
        return tensors

    with pytest.raises(
        UserError, match=r"1 tensors are missing, the first is .*q_proj\.lora_A\.weight; did you mean .*q_prj"
    ):
        peft.load(broken(tensors=moved), MODEL, params)
    with pytest.raises(
        UserError, match=r"1 tensors have no place in what adapter_config.json describes, the first is extra"
    ):
        peft.load(broken(tensors=lambda tensors: tensors | {"extra": np.zeros(1, np.float32)}), MODEL, params)


def test_files(broken, params, tmp_path):
    folder = broken()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged or cut short"):
        peft.load(folder, MODEL, params)
    path.unlink()
    with pytest.raises(UserError, match="has no adapter_model.safetensors$"):
        peft.load(folder, MODEL, params)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="has no adapter_model.safetensors: adapter_model.bin is a pickle"):
        peft.load(folder, MODEL, params)
    with pytest.raises(UserError, match="adapter_config.json is not there"):
        peft.load(tmp_path / "nowhere", MODEL, params)


@pytest.mark.parametrize(
    ("model", "transform", "change", "said"),
    [
        (MODEL, VeRA(("blocks/0/mixer/q",), 3), dict(save_projection=False), "save_projection is understood as True alone"),
        (MODEL, VeRA(("blocks/0/mixer/q",), 3), dict(r=4), r"vera_A has the shape \[3, 24\]; these layers make it \[4, 24\]"),
        (MODEL, AdaLoRA(("blocks/0/mixer/q",), 3, 2.0), dict(total_step=0), "total_step must be at least 1, found 0"),
        (MODEL, AdaLoRA(("blocks/0/mixer/q",), 3, 2.0), dict(tfinal=950), "AdaLoRA needs 0 <= begin < end <= 1"),
        (MODEL, AdaLoRA(("blocks/0/mixer/q",), 3, 2.0), dict(use_dora=True), "use_dora is understood as False alone"),
        (MODEL, AdaLoRA(("blocks/0/mixer/q",), 3, 2.0),
         dict(rank_pattern={"model.layers.0.self_attn.q_proj.lora_E": [True, False, True]}), "rank_pattern does not fit .* 2"),
        (BIASED, IA3((("blocks/0/mixer/q", "in"),)), dict(feedforward_modules=[]), "q_proj has a bias, which PEFT's IA3 scales"),
        (MAMBA, IA3((("blocks/0/mixer/(dt_low|b|c)", "out"),)), dict(target_modules=["dt_proj"]),
         "Transformers reads the weight of .*dt_proj past an adapter"),
    ],
)  # fmt: skip
def test_fields_of_other_kinds(model, transform, change, said, tmp_path, params):
    vera = isinstance(transform, VeRA)  # whose factors are the same in all layers
    adapted = transform.plan(model.specs()).lift(params, jax.random.key(0)) if vera else lifted(transform, model)
    peft.save(tmp_path / "saved", model, transform, adapted)
    path = tmp_path / "saved/adapter_config.json"
    assert peft.load(path.parent, model, without(adapted))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        peft.load(path.parent, model, without(adapted))


def test_half_the_bytes(tmp_path):
    lora = LoRA(("blocks/0/mixer/q",), 2)
    adapted = jax.tree.map(lambda x: x.astype(jnp.bfloat16), lifted(lora))
    peft.save(tmp_path / "saved", MODEL, lora, adapted)
    _, again = peft.load(tmp_path / "saved", MODEL, without(adapted))
    for x, y in zip(jax.tree.leaves(adapted), jax.tree.leaves(again), strict=True):
        assert x.dtype == y.dtype == jnp.bfloat16 and np.array_equal(x, y)


START = dict(peft_type="PROMPT_TUNING", num_virtual_tokens=3, task_type="CAUSAL_LM")


@pytest.mark.parametrize(
    ("change", "shape", "said"),
    [
        (dict(), (4, 24), r"prompt_embeddings has the shape \[4, 24\]; its configuration makes it \[3, 24\]"),
        (dict(token_dim=20), (3, 20), "token_dim is understood as 24 alone, found 20"),
        (dict(num_layers=3), (3, 24), "num_layers is understood as 2 alone"),
        (dict(num_transformer_submodules=2), (3, 24), "num_transformer_submodules is understood as 1 alone"),
        (dict(num_virtual_tokens=0), (3, 24), "PromptTuning.length must be at least 1"),
        (dict(num_virtual_tokens=None), (3, 24), "num_virtual_tokens is missing"),
        (dict(peft_type="PREFIX_TUNING"), (3, 24), r"prompt_embeddings has the shape \[3, 24\]; .* makes it \[3, 32\]"),
        (dict(peft_type="P_TUNING"), (3, 24), "no peft_type that can be read is called 'P_TUNING'"),
    ],
)  # fmt: skip
def test_learned_starts(params, tmp_path, change, shape, said):
    (tmp_path / "adapter_config.json").write_text(json.dumps(START | change))
    save_file({"prompt_embeddings": np.zeros(shape, np.float32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=said):
        peft.load(tmp_path, MODEL, params)


@pytest.mark.parametrize(
    ("model", "transforms", "said"),
    [
        (MODEL, LoRA(("embed",), 2), "embed is no linear layer of a llama: PEFT has no adapter there"),
        (MAMBA, LoRA(("blocks/0/mixer/x",), 2),
         "blocks/0/mixer/x has an adapter and blocks/0/mixer/z has none: in a mamba both are .*in_proj"),
        (MAMBA, LoRA(("blocks/0/mixer/(x|z)",), 2), "blocks/0/mixer/x/a and blocks/0/mixer/z/a differ, and are one tensor in PEFT"),
        (MAMBA, LoRA((("blocks/0/mixer/x", 3), "blocks/0/mixer/z"), 2), "the rank of .*in_proj is one in PEFT, and differs here"),
        (MAMBA, (LoRA(("blocks/0/mixer/x",), 2, alpha=3.0), LoRA(("blocks/0/mixer/z",), 2)), "alpha of .*in_proj is one in PEFT"),
        (MAMBA, LoRA(("blocks/0/mixer/o",), 2), "Transformers reads the weight of .*out_proj past an adapter"),
        (MAMBA, LoRA(("blocks/0/mixer/conv_x/w",), 2), "conv_x/w is no linear layer of a mamba"),
        (MAMBA, StateTuning(slots=2), "no adapter of PEFT is called 'StateTuning'"),
        (MODEL, PrefixTuning(("blocks/0/mixer",), 2), "PrefixTuning.rules=.*: a prefix of PEFT is in every layer"),
        (MODEL, LoRA(("blocks/0/mixer/q",), 2, init="pissa"), "LoRA.init='pissa'. took a part of the base"),
        (MODEL, (LoRA(("blocks/0/mixer/q",), 2, dropout=0.5), LoRA(("blocks/0/mixer/k",), 2)), "LoRA.dropout is 0.5 and 0.0"),
        (MODEL, AdaLoRA((("blocks/0/mixer/q", 4), "blocks/0/mixer/k"), 3, 2.0), r"AdaLoRA begins with ranks \[3, 4\]"),
        (MODEL, VeRA((("blocks/0/mixer/q", 4), "blocks/0/mixer/o"), 3), r"VeRA has ranks \[3, 4\]"),
        (MODEL, VeRA(("blocks/0/mixer/q", "blocks/0/mlp/down"), 3), "vera_A of .*down_proj is not the beginning of .*q_proj"),
        (BIASED, IA3((("blocks/0/mixer/k", "out"),)), "k_proj has a bias, which PEFT's IA3 scales"),
        (MODEL, (Mask((("blocks/0/mixer/q", 0.5),)), LoRA(("blocks/0/mixer/q",), 2)), "no adapter of PEFT is called 'Mask'"),
        (MODEL, (LoRA(("blocks/0/mixer/q",), 2), DoRA(("blocks/0/mixer/k",), 2)), "one kind of adapter, found DoRA, LoRA"),
        (MODEL, NF4(("blocks/0/mixer/q",)), "one kind of adapter, found none"),
    ],
)  # fmt: skip
def test_adapters_that_peft_has_not(model, transforms, said, tmp_path):
    whole = chain(*(transforms if isinstance(transforms, tuple) else (transforms,)))
    with pytest.raises(UserError, match=said):
        peft.save(tmp_path / "saved", model, transforms, lifted(whole, model))
    assert not (tmp_path / "saved").exists()


def test_parameters_of_other_transforms(made, tmp_path):
    with pytest.raises(
        UserError, match=re.escape("not of these transforms: blocks/0/mixer/q/a is [2, 24, 2], expected [2, 24, 3]")
    ):
        peft.save(tmp_path, MODEL, LoRA(("blocks/0/mixer/(q|v)",), 3), made[1])
    with pytest.raises(UserError, match="adapter_config|holds something already"):
        peft.save(made[0], MODEL, LoRA(("blocks/0/mixer/(q|v)",), 2), made[1])


def test_one_name_for_two_transforms(tmp_path):
    both = QLoRA(("blocks/0/mixer/q",), 2, block=8)
    peft.save(tmp_path / "saved", MODEL, both, lifted(both))
    assert set(load_file(tmp_path / "saved/adapter_model.safetensors")) == {
        Q.format(i, n) for i in range(2) for n in "AB"
    }


def test_fields_of_another_adapter_go_along_as_far_as_they_change_nothing(made, broken, tmp_path):
    like = broken(lambda fields: fields | dict(r=5, revision="main", eva_config=dict(rho=2.0)))
    saved = tmp_path / "saved"
    peft.save(saved, MODEL, LoRA(("blocks/0/mixer/(q|v)",), 2), made[1], like=like)
    fields = json.loads((saved / "adapter_config.json").read_text())
    assert fields["r"] == 2 and fields["revision"] == "main" and fields["eva_config"] == dict(rho=2.0)
