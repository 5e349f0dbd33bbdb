"""Every benchmark runs at a toy size and hands back a record; no figure is judged here."""

import argparse
import functools
import inspect
import json

import pytest

from jaxeff.bench import registry
from jaxeff.bench.attention_memory import attention_memory
from jaxeff.bench.decode import decode
from jaxeff.bench.generation import generate
from jaxeff.bench.loading import load
from jaxeff.bench.pairs import PAIRS
from jaxeff.bench.running import checkpoint, data
from jaxeff.bench.startup import compile_time, import_time
from jaxeff.bench.tpu import tpu_transforms
from jaxeff.bench.training import Size, train
from jaxeff.bench.transforms import METHODS, transforms
from jaxeff.core.errors import UserError
from jaxeff.core.spec import count
from jaxeff.evaluate.timing import alternate
from jaxeff.models.presets import PRESETS
from jaxeff.models.presets.transformer import transformer

TINY = """
from jaxeff.data import Bytes, TextData, Grammar
from jaxeff.models import LM, Stage
from jaxeff.train.experiment import Experiment


def config():
    lm = LM(vocab_size=259, d_model=16, stages=(Stage(("gqa",), 1),))
    return Experiment(lm, TextData(Grammar(40), Bytes(), seq_len=32, batch_size=4))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXEFF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return str(path)


def check(entry, name):
    assert entry["name"] == name and entry["rows"]
    assert {"ours", "peer", "unit", "ratio", "machine", "meaning"} <= set(entry)
    json.dumps(entry)


def test_train_without_a_peer():
    entry = train(sizes="8x2", d_model="64", peer="none", rounds=1)
    check(entry, "train")
    assert entry["peer"] is None and entry["rows"][0]["ours_ms"] > 0


def test_sizes_are_those_of_the_comparison():
    size = Size(256, 256, 4)
    assert count(size.lm.specs()) == 4_065_536  # what Llama has at these sizes, head and embedding tied
    assert size.flops == pytest.approx(6 * 4_065_536 * 1024 + 12 * 256 * 4 * 4 * 256 * 257 / 2)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_models_follow_from_a_width(name):
    lm, wider = (PAIRS[name].lm(64, d, 2) for d in (64, 128))
    assert lm.n_layers == 2 and 2 * count(lm.specs()) < count(wider.specs())
    assert PAIRS[name].fields(128) != PAIRS[name].fields(64)


def test_a_pair_that_is_none_is_refused():
    with pytest.raises(UserError, match="no pair of models is called 'mamba3'; did you mean"):
        train(mixer="mamba3", peer="none", rounds=1)


@pytest.mark.parametrize("sizes", ["256", "axb", "1x2x3"])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(UserError, match="such as 256x4"):
        train(sizes=sizes, peer="none", rounds=1)


def test_transforms_without_a_peer():
    entry = transforms(methods="lora,qlora", sizes="8x2", d_model="64", rank=2, rounds=1)
    check(entry, "transforms")
    rows = {row["method"]: row for row in entry["rows"]}
    assert set(rows) == {"full", "lora", "qlora"} <= set(METHODS) and entry["ratio"] == rows["lora"]["of full"]
    # Adam's two moments of what trains, and a counter of the steps: nothing for what is frozen.
    assert all(row["optimizer bytes"] == 8 * row["trained"] + 4 for row in rows.values())
    assert rows["lora"]["trained"] == rows["qlora"]["trained"] < rows["full"]["trained"] / 10
    assert rows["full"]["bits a weight"] == 32 < rows["lora"]["bits a weight"]
    assert 0.5 < rows["qlora"]["bytes a quantized"] < 0.53


def test_a_method_that_is_none_is_refused():
    with pytest.raises(UserError, match="no method is called 'qlora2'; did you mean"):
        transforms(methods="qlora2", rounds=1)


def test_without_the_compiler_for_tpus_one_line_says_so(monkeypatch):
    def missing(**_):
        raise RuntimeError("no such library\nwith many words")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    with pytest.raises(
        UserError, match="cannot compile for 'v5e:2x4': no such library; pip install 'jaxeff.plan.'"
    ) as told:
        tpu_transforms()
    assert "\n" not in str(told.value)


def test_attention_needs_far_less_than_all_scores():
    entry = attention_memory(time=2048, heads=1, kv_heads=1)
    check(entry, "attention-memory")
    assert entry["ratio"] > 8


def test_decode():
    entry = decode(contexts="4,8", d_model=32, layers=1, tokens=2, rounds=1)
    check(entry, "decode")
    assert set(entry["growth"]) == {"linear", "gqa"}


def test_generate_without_a_peer(monkeypatch):
    for module in ("timing", "generation"):
        monkeypatch.setattr(f"jaxeff.bench.{module}.READ_BYTES", 2**20)
    entry = generate(
        mixers="gqa", batches="1,2", d_model=64, layers=1, vocabulary=32, prompt=4, tokens=3, peer="none", rounds=1
    )
    check(entry, "generate")
    assert [row["batch"] for row in entry["rows"]] == [1, 2] and entry["peer"] is None


def test_load(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", lambda: transformer(64, 32, 2, 48, 4, 2))
    entry = load("tiny", rounds=1)
    check(entry, "load")
    assert entry["peak_over_file"] > 1 and entry["ratio"] > 0


@pytest.fixture
def no_warmup(monkeypatch):
    """Of start-ups, whose figures here are looked at by nobody."""
    monkeypatch.setattr("jaxeff.bench.startup.alternate", functools.partial(alternate, warmup=0))


def test_compile_time(no_warmup):
    check(compile_time(shallow=1, deep=2, d_model=32, rounds=1), "compile")


def test_import_time(no_warmup):
    check(import_time(rounds=1), "import")


def test_data(tiny):
    entry = data(config=tiny, steps=3, runs=1)
    check(entry, "data")
    assert 0 < entry["ratio"] < 1


def test_checkpoint(tiny):
    check(checkpoint(config=tiny, every=2, rounds=1), "checkpoint")


def test_every_benchmark_can_be_called_by_name_with_its_options():
    parser = argparse.ArgumentParser()
    registry.add_arguments(parser)
    for name, function in registry.BENCHMARKS.items():
        options = vars(parser.parse_args([name]))
        defaults = {p.name: p.default for p in inspect.signature(function).parameters.values()}
        assert options == {"benchmark": name, "json": None, **defaults}
    assert parser.parse_args(["train", "--rounds", "3"]).rounds == 3
    assert parser.parse_args([]).benchmark is None


def test_run_prints_and_writes(tmp_path, capsys):
    registry.run("attention-memory", json=str(tmp_path / "a.json"), time=64, heads=1, kv_heads=1, head_dim=8)
    assert "attention_reference" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["name"] == "attention-memory"


def test_without_a_name_the_benchmarks_are_listed(capsys):
    assert registry.run(None) is None
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(registry.BENCHMARKS)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="attention-memory"):
        registry.run("attention-memor")
