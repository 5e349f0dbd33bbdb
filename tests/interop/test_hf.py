"""Public checkpoints that are not as they should be: one line that names what. Agreement with Transformers is in tests/golden."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxeff.core.errors import UserError
from jaxeff.core.sharding import make_mesh, shardings
from jaxeff.core.spec import abstract
from jaxeff.interop import hf
from jaxeff.interop.hf import files
from jaxeff.mixers import GQA, MLP, Mamba2
from jaxeff.mixers.base import Ctx
from jaxeff.mixers.norm import RMSNorm
from jaxeff.models import LM, Block, Stage
from jaxeff.transforms import Int8, LoRA
from tests.closeness import assert_close
from tests.compiled import apply_model
from tests.interop.parts import values

CONFIG = dict(
    model_type="llama", vocab_size=29, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=100.0, tie_word_embeddings=False, torch_dtype="float32",
)  # fmt: skip
MODEL = LM(
    29, 24, (Stage((Block(GQA(n_heads=6, n_kv_heads=2), MLP(d_hidden=20), RMSNorm(1e-5)),), 2),), tied=False,
    norm=RMSNorm(1e-5),
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved model of ours and its parameters."""
    folder = tmp_path_factory.mktemp("made") / "model"
    params = jax.tree.map(jnp.asarray, values(MODEL))
    hf.save(folder, MODEL, params)
    return folder, params


@pytest.fixture
def broken(made, tmp_path):
    """A copy to break: its folder; change(tensors or config) -> what is written there instead."""

    def change(config=lambda c: c, tensors=lambda t: t):
        folder = tmp_path / "broken"
        folder.mkdir(exist_ok=True)
        fields = json.loads((made[0] / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config(fields)))
        save_file(tensors(load_file(made[0] / "model.safetensors")), folder / "model.safetensors")
        return folder

    return change


def test_a_model_trained_here_goes_out_and_comes_back(made):
    folder, params = made
    model, again = hf.load(folder)
    assert hf.canonical(model) == hf.canonical(MODEL)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(attention_multiplier=0.1), r"attention_multiplier=0\.1 not understood"),
        (dict(hiden_act="silu"), r"hiden_act='silu' not understood.*did you mean 'hidden_act'"),
        (dict(hidden_act="swiglu"), "hidden_act must be one of silu"),
        (dict(model_type="lama"), "no model_type that can be read is called 'lama'; did you mean 'llama'"),
        (dict(vocab_size=None), "vocab_size is missing"),
        (dict(vocab_size="29"), "vocab_size must be of type int, found '29'"),
        (dict(num_hidden_layers=True), "num_hidden_layers must be of type int, found True"),
        (dict(num_key_value_heads=4), "does not divide"),
        (dict(rope_scaling=dict(rope_type="longrope", factor=2.0)), "rope_scaling: rope_type is not known"),
        (dict(rope_scaling=dict(rope_type="linear", factor=2.0, low=1)), "rope_scaling: low=1 not understood"),
        (dict(rope_scaling=dict(rope_type="linear")), "rope_scaling: factor is missing"),
        (dict(quantization_config=dict(bits=4)), "quantization_config=.* not understood"),
        (dict(auto_map={"AutoModelForCausalLM": "modeling_other.OtherForCausalLM"}), "auto_map names code"),
        (dict(num_hidden_layers=3), r"9 tensors are missing, the first is model\.layers\.2\."),
        (dict(num_hidden_layers=1), r"9 tensors have no place .* the first is model\.layers\.1\."),
        (dict(intermediate_size=21), r"mlp\.gate_proj\.weight has the shape \[20, 24\]; config\.json makes it \[21, 24\]"),
        (dict(tie_word_embeddings=True), r"1 tensors have no place .* lm_head\.weight"),
    ],
)  # fmt: skip
def test_configurations_that_would_be_another_model(broken, change, said):
    folder = broken(lambda fields: {name: v for name, v in (fields | change).items() if v is not None})
    with pytest.raises(UserError, match=said):
        hf.load(folder)


def test_what_changes_no_logits_is_let_through(broken):
    more = dict(
        architectures=["Other"],
        transformers_version="4.1",
        bos_token_id=[1, 2],
        attention_dropout=0.5,
        rope_scaling=None,
    )
    more |= dict(auto_map={"AutoConfig": "configuration_llama.LlamaConfig"})
    model, _ = hf.load(broken(lambda fields: fields | more))
    assert model == hf.load(broken())[0]


def test_a_tied_head_that_is_stored_again(broken):
    tie = lambda fields: fields | dict(tie_word_embeddings=True)
    same = lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    model, params = hf.load(broken(tie, same))
    assert model.tied and "head" not in params


def test_a_file_without_its_prefix(broken, made):
    bare = lambda tensors: {name.removeprefix("model."): x for name, x in tensors.items()}
    _, params = hf.load(broken(tensors=bare))
    jax.tree.map(np.testing.assert_array_equal, params, made[1])


def test_damaged_files(broken, made):
    folder = broken()
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for bad in (whole[:-8], whole[:20], b"", b"\xff" * 8 + whole[8:], whole[:8] + b"x" + whole[9:]):
        path.write_bytes(bad)
        with pytest.raises(
            UserError, match="model.safetensors cannot be read as safetensors, it is damaged or cut short"
        ):
            hf.load(folder)
    path.unlink()
    with pytest.raises(UserError, match="has no model.safetensors and no model.safetensors.index.json"):
        hf.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pytorch_model.bin, a pickle, which can run code"):
        hf.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        hf.load(folder)
    with pytest.raises(UserError, match="is no folder of a public checkpoint"):
        hf.load(folder / "absent")


def test_several_files(made, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 4000)
    folder = tmp_path / "shards"
    hf.save(folder, MODEL, made[1])
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder)[1], made[1])
    (folder / names[1]).unlink()
    with pytest.raises(UserError, match=f"names {names[1]}, which is not there: the download is incomplete"):
        hf.load(folder)
    index = json.loads((folder / files.INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../made/model.safetensors")
    (folder / files.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="which is not there"):
        hf.load(folder)


def test_dtypes(broken, made):
    half = lambda tensors: {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
    folder = broken(tensors=half)
    _, params = hf.load(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.bfloat16.dtype}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), params, made[1])
    wide = hf.load(folder, dtype=jnp.float32)[1]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), wide, params)
    one = lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"].astype(np.float16)}
    with pytest.raises(UserError, match="several dtypes, float16, float32"):
        hf.load(broken(tensors=one))
    codes = lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"].astype(np.int8)}
    with pytest.raises(UserError, match="lm_head.weight holds I8 numbers"):
        hf.load(broken(tensors=codes))


def test_each_device_is_given_its_part(made):
    mesh = make_mesh(fsdp=2, tensor=2)
    model, params = hf.load(made[0], mesh=mesh)
    layouts = shardings(model.specs(), mesh)
    jax.tree.map(lambda leaf, layout: None if leaf.sharding == layout else pytest.fail(str(layout)), params, layouts)
    jax.tree.map(np.testing.assert_array_equal, params, made[1])


def test_models_that_no_public_checkpoint_holds(made, tmp_path):
    mixed = LM(29, 32, (Stage((Block(Mamba2(head_dim=16)), Block(GQA(n_heads=2))), 1),))
    with pytest.raises(
        UserError, match="no public checkpoint holds such a model: llama, .*: a layer is not attention and MLP"
    ):
        hf.save(tmp_path / "no", mixed, abstract(mixed.specs()))
    with pytest.raises(UserError, match="llama, mistral, .*: the activation 'mish' has no name there"):
        odd = LM(29, 24, (Stage((Block(GQA(n_heads=6), MLP(activation="mish")),), 1),))
        hf.save(tmp_path / "no", odd, abstract(odd.specs()))
    with pytest.raises(UserError, match="norm.eps is 1e-06, where it would be 0.001"):
        slow = LM(29, 24, (Stage((Block(GQA(n_heads=6)),), 1),), norm=RMSNorm(1e-3))
        hf.save(tmp_path / "no", slow, abstract(slow.specs()), family="llama")
    lifted = Int8().plan(MODEL.specs()).lift(made[1], jax.random.key(0))
    with pytest.raises(UserError, match="is a Int8Weight: merge the transforms into plain arrays first"):
        hf.save(tmp_path / "no", MODEL, lifted)
    with pytest.raises(UserError, match="holds something already"):
        hf.save(made[0], MODEL, made[1])
    assert not (tmp_path / "no").exists()


def test_transforms_on_what_was_loaded(made):
    model, params = hf.load(made[0])
    plan = LoRA(rank=2).plan(model.specs())
    lifted = plan.lift(params, jax.random.key(0))
    tokens = np.arange(10)[None]
    assert_close(*(apply_model(model, x, tokens, None, Ctx()).y for x in (lifted, params)), 1e-6)
    assert jax.tree.map(lambda leaf: leaf.shape, lifted) == jax.tree.map(lambda leaf: leaf.shape, abstract(plan.specs))
