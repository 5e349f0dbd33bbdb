"""`--set`: typed by annotations, exact both ways, and helpful when mistyped."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxeff.core.errors import UserError
from jaxeff.data import Grammar, PythonCode, SentencePiece, Text
from jaxeff.mixers import GQA, MHA, LayerNorm, LinearAttention
from jaxeff.models import LM, Block, Stage, Tied
from jaxeff.ops.rope import Rope
from jaxeff.train.config_json import diff, flatten, to_json
from jaxeff.train.experiment import Experiment
from jaxeff.train.overrides import override, paths
from jaxeff.transforms import NF4, Int8, LoRA, LowRank
from tests.train.tiny import experiment


def leaves(value, prefix=""):
    """(path, value) of everything in a config that has no fields of its own."""
    if dataclasses.is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
    elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        items = [(str(i), item) for i, item in enumerate(value)]
    else:
        return [(prefix, value)]
    return [leaf for name, item in items for leaf in leaves(item, f"{prefix}.{name}" if prefix else name)]


def spoken(value) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, tuple):
        return str(list(value))
    return str(value)


RICH = Experiment(
    LM(
        64,
        d_model=32,
        stages=(
            Stage((Block(GQA(n_heads=4, rope=Rope(fraction=0.5))), "linear")),
            Stage((Block(LinearAttention(), norm=LayerNorm()), Tied("t", "mqa")), 2),
        ),
        embed_scale="sqrt",
    ),
)


@pytest.mark.parametrize("e", [experiment(), RICH, Experiment(LM(10))], ids=["tiny", "rich", "default"])
def test_every_leaf_round_trips(e):
    for path, value in leaves(e):
        assert override(e, [f"{path}={spoken(value)}"]) == e, path
    assert override(e, [f"{path}={spoken(value)}" for path, value in leaves(e)]) == e


SETTABLE = {
    "seed": st.integers(0, 2**32 - 1),
    "precision": st.sampled_from(["float32", "bfloat16", "float16"]),
    "model.d_model": st.sampled_from([8, 16, 64]),
    "model.stages.0.repeats": st.integers(1, 100),
    "model.tied": st.booleans(),
    "model.softcap": st.none() | st.floats(1, 100),
    "model.embed_scale": st.none() | st.just("sqrt") | st.floats(0.1, 100),
    "model.remat": st.sampled_from(["none", "dots", "narrow", "attention", "full"]),
    "model.max_positions": st.none() | st.integers(1, 10**9),
    "model.stages.0.pattern.0.mixer.window": st.none() | st.tuples(st.integers(0, 1000), st.just(0)),
    "model.stages.0.pattern.0.mixer.rope.base": st.floats(1, 1e9, exclude_min=True),
    "model.stages.0.pattern.0.mlp.activation": st.sampled_from(["silu", "gelu", "relu"]),
    "data.seq_len": st.integers(2, 2**20),
    "data.max_bytes": st.none() | st.integers(1, 2**60),
    "data.valid_fraction": st.floats(0, 0.5, exclude_max=True),
    "data.source.n_documents": st.integers(1, 1000),
    "objective.z_loss": st.floats(0, 1),
    "optim.lr": st.floats(0, 1e300),
    "optim.b2": st.none() | st.floats(0, 1),
    "optim.clip": st.none() | st.floats(1e-300, 1e300),
    "optim.schedule": st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    "train.save_every": st.none() | st.integers(1, 10**9),
    "train.init_from": st.none() | st.sampled_from(["runs/a", "runs/with space", "a=b"]),
    "train.tensorboard": st.booleans(),
    "train.wandb": st.booleans(),
    "mesh.tensor": st.integers(1, 64),
}


def at(value, path: str):
    for name in path.split("."):
        value = value[int(name)] if isinstance(value, tuple) else getattr(value, name)
    return value


@given(st.fixed_dictionaries({}, optional=SETTABLE))
def test_any_value_arrives_exactly_and_alone(values):
    """Bit for bit, type for type; and no other field changes."""
    e = experiment()
    new = override(e, [f"{path}={spoken(value)}" for path, value in values.items()])
    for path, value in values.items():
        assert at(new, path) == value and type(at(new, path)) is type(value), path
    changed = {name.removesuffix(".0").removesuffix(".1") if "window" in name else name for name, _, _ in diff(e, new)}
    assert changed <= values.keys()
    assert override(new, []) == new


@given(
    st.permutations(
        ["model.d_model=64", "model.stages.0.pattern.0.mixer.head_dim=16", "optim.lr=1", "optim.schedule=wsd"]
    )
)
def test_order_does_not_matter(assignments):
    assert override(experiment(), assignments) == override(experiment(), sorted(assignments))


def test_later_assignment_wins():
    assert override(experiment(), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("data.source=python_code", "data.source", PythonCode()),
        ("data.source=Grammar", "data.source", Grammar()),
        ("data.tokenizer=sentence-piece", "data.tokenizer", SentencePiece()),
        ("model.stages.0.pattern=mha,linear", "model.stages.0.pattern", (Block(MHA()), Block(LinearAttention()))),
        (
            "model.stages.0.pattern=[ 'mha' , 'linear' ]",
            "model.stages.0.pattern",
            (Block(MHA()), Block(LinearAttention())),
        ),
        ("model.stages.0.pattern.0.mixer=linear", "model.stages.0.pattern.0.mixer", LinearAttention()),
        ("model.stages.0.pattern.0.mlp=none", "model.stages.0.pattern.0.mlp", None),
        ("train.steps=1_000", "train.steps", 1000),
        ("optim.lr= 3e-4 ", "optim.lr", 3e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("model.tied=False", "model.tied", False),
        ("train.save_every=None", "train.save_every", None),
    ],
)
def test_spellings(assignment, path, value):
    found = at(override(experiment(), [assignment]), path)
    assert found == value and type(found) is type(value)


def test_class_and_its_fields_in_one_go():
    e = override(experiment(), ["data.tokenizer.vocab_size=512", "data.tokenizer=sentence_piece"])
    assert e.data.tokenizer == SentencePiece(vocab_size=512)
    e = override(experiment(), ["data.source.paths=a,b/c d", "data.source=text"])
    assert e.data.source == Text(("a", "b/c d"))
    e = override(experiment("model.stages.0.pattern=linear,gqa"), ["model.stages.0.pattern.1.mixer.n_heads=2"])
    assert e.model.stages[0].pattern == (Block(LinearAttention()), Block(GQA(n_heads=2)))


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.step=5", "Train has no field 'step'; did you mean 'steps'"),
        ("modle.d_model=5", "did you mean 'model'"),
        ("d_model=5", "did you mean 'model.d_model'"),
        ("batch_size=5", "did you mean 'data.batch_size'"),
        ("train.steps=many", "--set train.steps=many: expected an integer, found 'many'"),
        ("train.steps=1.5", "expected an integer"),
        ("train.steps=", "expected an integer"),
        ("optim.lr=fast", "expected a number"),
        ("optim.lr=nan", "expected a finite number"),
        ("model.tied=perhaps", "expected true or false"),
        ("precision=float31", "did you mean 'float32'"),
        ("optim.schedule=cosin", "did you mean 'cosine'"),
        ("optim.name=adamm", "did you mean 'adam'"),
        ("model.stages.0.pattern.0.mixer=gqq", "did you mean 'gqa'"),
        ("model.stages.0.pattern=gqq", "did you mean 'gqa'"),
        ("model.stages.0.pattern.7.mixer=gqa", "has 1 items; indices: 0..0"),
        ("model.d_model.x=1", "model.d_model is 16 and has no fields"),
        ("data.source=text", "text needs --set data.source.paths=... as well"),
        ("data.source=grammer", "did you mean 'grammar'"),
        ("train.steps", "expected path=value"),
        ("=3", "expected path=value"),
        ("train.steps=0", "Train.steps must be at least 1, found 0"),
        ("seed=-1", "Experiment.seed must lie in"),
        ("data.seq_len=1", "data.seq_len must be at least 2"),
        ("model.stages.0.pattern.0.mixer.n_kv_heads=3", "n_kv_heads"),
    ],
)
def test_mistakes_are_named(assignment, words):
    with pytest.raises(UserError) as error:
        override(experiment(), [assignment])
    assert words in str(error.value) and "--set" in str(error.value)


def test_paths_are_all_there():
    """What a message suggests can be set."""
    found = paths(RICH)
    assert set(flatten({k: v for k, v in to_json(RICH).items() if k != "type"})) - set(found) <= {
        p for p in flatten(to_json(RICH)) if p.endswith(".type")
    }
    assert "model.stages.1.pattern.1.block.mixer" in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora", (LoRA(),)),
        ("int8,LoRA(rank=4)", (Int8(), LoRA(rank=4))),
        ('[NF4(), LoRA(rules=["blocks/.*/mixer/(q|v)", ("embed", 2)], alpha=4.0)]',
         (NF4(), LoRA(rules=("blocks/.*/mixer/(q|v)", ("embed", 2)), alpha=4.0))),
        ("low_rank", (LowRank(),)),
        ("[LowRank(rank=3),]", (LowRank(rank=3),)),
        ("[]", ()),
    ],
)  # fmt: skip
def test_transforms_are_named_or_called(text, expected):
    assert override(Experiment(LM(20, 16)), [f"transforms={text}"]).transforms == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lorra", "one of adalora, adapter, .*did you mean 'lora'"),
        ("LoRA(rnk=8)", "LoRA has no field 'rnk'; did you mean 'rank'"),
        ("LoRA(8)", r"LoRA\(name=value, ...\) with plain values"),
        ("LoRA(rank=open('x'))", "with plain values"),
        ("LoRA(rank=0)", "LoRA.rank must be at least 1, found 0"),
        ("LoRA(rank=8", "a list such as"),
    ],
)
def test_transforms_that_cannot_be(text, says):
    with pytest.raises(UserError, match=f"--set transforms={re.escape(text)}.*({says})"):
        override(Experiment(LM(20, 16)), [f"transforms={text}"])
