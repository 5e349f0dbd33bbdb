"""`jaxeff describe`: its sums are the model's, its lines are aligned, and it makes no weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from jaxeff.core.spec import abstract, count, init
from jaxeff.core.tree import paths
from jaxeff.evaluate.decoding import state_bytes
from jaxeff.lab.ablation import load as load_ablation
from jaxeff.mixers import GQA, Mamba2
from jaxeff.models import LM, Block, Stage
from jaxeff.models.presets import PRESETS
from jaxeff.models.stack import Tied
from jaxeff.train.config_file import load
from jaxeff.train.config_json import to_json
from jaxeff.train.description import describe, facts, table
from jaxeff.train.experiment import Experiment
from jaxeff.train.outline import Part, outline
from jaxeff.train.overrides import replaced
from jaxeff.train.weights import Weights
from jaxeff.transforms.registry import TRANSFORMS
from tests.cli.workdirs import refused, said
from tests.train.tiny import CONFIG, ROOT, experiment

ABLATIONS = sorted((ROOT / "configs" / "ablations").glob("*.py"))
LORA = "transforms=[LoRA(rules=('blocks/.*/mixer/(q|v)',), rank=2)]"
RULES = {
    "low_rank": (("blocks/.*/mixer/q", 2),),
    "mask": (("blocks/.*/mixer/q", 0.5),),
    "ia3": (("blocks/.*/mixer/k", "out"),),
}
MIXED = (Stage((Block(Mamba2()), Tied("shared", "gqa"), Block(Mamba2()), Block(Mamba2()), Tied("shared", "gqa")), 2),)


def leaves(part: Part, copies: int = 1, above: str = ""):
    """(path, parameters of all copies) of what lies below a part."""
    for inner in part.parts:
        path, n = f"{above}/{inner.name}".lstrip("/"), copies * part.copies
        if inner.spec is None:
            yield from leaves(inner, n, path)
        else:
            yield path, n * inner.count


def check(weights: Weights) -> list[str]:
    """The lines of a model, whose sums add up and which fit."""
    tree = outline(weights)
    whole, trained = count(weights.specs), count(weights.split(weights.specs)[0])
    assert tree.count == sum(n for _, n in leaves(tree)) == whole
    assert tree.trained == trained
    lines = table(tree)
    at = lines[0].index("parameters") + len("parameters")
    assert max(map(len, lines)) <= 120 and all(line == line.rstrip() for line in lines)
    shown = [(len(line) - len(line.lstrip()), int(line[:at].split()[-1].replace(",", ""))) for line in lines[1:]]
    assert shown[0] == (0, whole)
    assert sum(n for depth, n in shown if depth == 2) == whole
    return lines


def test_the_sums_of_the_shipped_config():
    check(load(ROOT / "configs" / "quickstart.py").weights)


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_the_sums_of_every_model_of_the_ablations(path):
    ablation = load_ablation(path)
    for weights in {replaced(ablation.base, variant.changes).weights for variant in ablation.variants}:
        check(weights)


@pytest.mark.parametrize("name", PRESETS)
def test_the_sums_of_presets(name):
    check(Weights(PRESETS[name]()))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_sums_after_transforms(name):
    model = experiment().model
    given = {"rules": RULES[name]} if name in RULES else {}
    check(Weights(model, (TRANSFORMS[name](**given),)))


def test_the_sums_of_tied_and_repeated_blocks():
    model = LM(vocab_size=64, d_model=64, stages=(*MIXED, Stage(("mamba2",), 3)))
    lines = check(Weights(model))
    starts = [line.split()[:3] for line in lines]
    assert ["0", "x", "2"] in starts and ["2-3", "x", "4"] in starts and ["5", "x", "3"] in starts
    assert any("one block for layers 1, 4, 6, 9" in line for line in lines)


def test_equal_blocks_of_other_settings_stand_apart():
    near, far = Block(GQA(n_heads=4, window=(7, 0))), Block(GQA(n_heads=4))
    tree = outline(Weights(LM(vocab_size=64, d_model=32, stages=(Stage((near, near, far)),))))
    blocks = next(part for part in tree.parts if part.name == "blocks")
    assert [(part.name, part.copies) for part in blocks.parts] == [("0-1", 2), ("2", 1)]


def test_blocks_of_which_one_is_adapted_stand_apart():
    block = Block(GQA(n_heads=4))
    model = LM(vocab_size=64, d_model=32, stages=(Stage((block, block)),))
    lines = check(Weights(model, (TRANSFORMS["lora"](rules=("blocks/1/mixer/q",), rank=2),)))
    assert sum("LoRA" in line for line in lines) == 1


def test_weights_say_what_transforms_made_of_them():
    lines = check(Weights(experiment().model, (TRANSFORMS["qlora"](rules=("blocks/.*/mixer/q",), rank=2),)))
    at = next(i for i, line in enumerate(lines) if line.split()[:2] == ["q", "LoRA"])
    assert lines[at + 1].split()[:2] == ["base", "NF4"]


def test_the_whole_of_a_small_model(tmp_path, capsys):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    e = experiment()
    total = count(e.model.specs())
    text = said(capsys, "describe", path)
    model, costs = text.split("\n\n")
    assert model.splitlines()[:10] == [
        "                        shape       axes                     one layer  parameters",
        f"LM                      2 layers, width 16, vocabulary 259                   {total:,}",
        "  embed                 259 x 16    vocab embed                              4,144",
        "  blocks                                                                     4,672",
        "    0  x 2              layers 0-1                               2,336       4,672",
        "      mixer_norm/scale  16          embed                           16          32",
        "      mixer  GQA                                                   768       1,536",
        "        q               16 x 4 x 4  embed heads head_dim           256         512",
        "        k               16 x 2 x 4  embed kv_heads head_dim        128         256",
        "        v               16 x 2 x 4  embed kv_heads head_dim        128         256",
    ]
    told = dict(line.split(maxsplit=1) for line in costs.splitlines())
    assert told["parameters"] == f"{total:,}, all of them trained"
    assert f"({4 * total:,} bytes) in float32" in told["weights"]
    assert told["step"] == "128 tokens: 4 rows of 32" and told["run"] == "1,024 tokens in 8 steps"


def test_set_works_as_in_train(tmp_path, capsys):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    text = said(capsys, "describe", path, "--set", "model.vocab_size=300", "--set", "train.accumulate=2")
    assert "vocabulary 300" in text and "4 rows of 32, in 2 micro-batches" in text
    assert "did you mean 'steps'" in refused(capsys, "describe", path, "--set", "train.step=3")


def test_a_run_with_lora_tells_the_trained_share(tmp_path, capsys):
    e = experiment(LORA)
    (tmp_path / "run.json").write_text(json.dumps({"config": to_json(e), "corpus": "", "data": {}, "starts": []}))
    text = said(capsys, "describe", "--workdir", tmp_path)
    trained, total = count(e.weights.split(e.specs)[0]), count(e.specs)
    share = f"{total:,}, of which {trained:,} ({100 * trained / total:.3g} %) are trained; {count(e.model.specs()):,} before"
    assert share in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith("        ")}
    assert rows["q"][1] == "LoRA" and rows["base"][-1] == "-" and rows["a"][-1] == rows["a"][-2] != "-"


def test_trainable_alone_tells_the_trained_share():
    e = dataclasses.replace(experiment(), trainable=("embed",))
    assert "of which 4,144 (" in facts(e)["parameters"]


def test_what_it_says_of_costs_is_so():
    e = experiment("precision=bfloat16", "transforms=[Int8(rules=('blocks/.*/mixer/.',))]")
    told = facts(e)
    weights = e.weights.plan.lift(init(e.model.specs(), jax.random.key(0)), jax.random.key(0))
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
    assert f"({stored:,} bytes) in " in told["weights"] and told["weights"].endswith("computed in bfloat16")
    assert "int8" in told["weights"] and "float32" in told["weights"]
    assert told["decoding"].startswith(f"{state_bytes(e.model, 32, dtype=jnp.bfloat16) / 1024:.1f} KiB of state")


def test_products_are_what_a_forward_pass_costs_most():
    # 2 FLOPs for each weight of a matrix and token, head included, and the two products of attention.
    e = experiment()
    matrices = sum(spec.size for path, spec in paths(e.model.specs()).items() if "norm" not in path)
    least = 2 * matrices
    number, unit = facts(e)["forward"].split()[:2]
    assert unit == "kFLOPs" and least <= 1e3 * float(number) <= 1.5 * least


def test_a_learned_start_is_in_the_state():
    plain, begun = (facts(experiment(*more))["decoding"] for more in ((), ("transforms=[PromptTuning(length=16)]",)))
    assert plain != begun


def test_a_preset_needs_no_config_and_no_memory(monkeypatch, capsys):
    made = []
    monkeypatch.setattr(jax, "device_put", lambda *args, **more: made.append(args))
    text = said(capsys, "describe", "--model", "falcon-mamba-7b", "--set", "data.seq_len=1024")
    assert "7,272,665,088, all of them trained" in text and "at 1,024 tokens" in text
    assert "\nrun " not in text and not made


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--model", "gpt3"), "no preset is called 'gpt3'; did you mean 'gpt2'"),
        (("--model", "hf:{folder}/none"), "none/config.json is not there"),
        (("--workdir", "{folder}"), "holds no training run"),
        (("{folder}/absent.py",), "no config file"),
    ],
)
def test_what_cannot_be_described_is_one_line(tmp_path, capsys, words, told):
    assert told in refused(capsys, "describe", *(word.format(folder=tmp_path) for word in words))


@pytest.mark.parametrize("words", [[], ["a.py", "--workdir", "b"], ["--workdir", "b", "--model", "gpt2"]])
def test_it_takes_one_model(capsys, words):
    from jaxeff.cli import main

    with pytest.raises(SystemExit) as end:
        main(["describe", *words])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_notebook_gets_the_same_text(tmp_path, capsys):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    assert said(capsys, "describe", path) == describe(experiment()) + "\n"


def test_abstract_weights_fit_the_model():
    e = Experiment(PRESETS["gpt2"]())
    assert facts(e)["parameters"].startswith("124,439,808, ")
    assert sum(x.size for x in jax.tree.leaves(abstract(e.specs))) == 124_439_808
