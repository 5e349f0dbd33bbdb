"""Odd input at every boundary where something comes from outside: one line that names it, or it works all the same.

A new case is a new row.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxeff.cli import main
from jaxeff.core.errors import UserError
from jaxeff.lab.ablation import Ablation, Variant
from tests.cli.workdirs import refused
from tests.train.tiny import CONFIG, environment, experiment

IMPORTS = """
import dataclasses
from jaxeff.data import Bytes, Grammar, SentencePiece, Text, TextData
from jaxeff.mixers import GQA
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim
from tests.train.tiny import experiment

def changed(**fields):
    return dataclasses.replace(experiment(), **fields)

def data(**fields):
    return changed(data=dataclasses.replace(experiment().data, **fields))

"""

# What config() returns, or the whole file where it does not begin with an expression; what is said of it.
CONFIGS = [
    ("None", "config() must return an Experiment, found NoneType"),
    ("[experiment()]", "config() must return an Experiment, found list"),
    ("Experiment", "config() must return an Experiment, found the class Experiment"),
    ("experiment", "config() must return an Experiment, found function"),
    ("def config(size): pass", "config() is called without arguments, and takes size"),
    ("raise SystemExit(3)", "it ends the program (SystemExit(3))"),
    ("def config(): exit(1)", "it ends the program"),
    ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
    ("config = 3", "defines no function config()"),
    ("\\0", "null byte"),
    ("changed(model=LM('259'))", "LM.vocab_size: expected an integer, found '259'"),
    ("changed(model=LM)", "model: expected an LM, found the class LM: write LM(...)"),
    ("changed(model=None)", "model: expected an LM, found None"),
    ("changed(data=None)", "data: expected a Data, found None"),
    ("changed(data='my.txt')", "data: expected a Data, found 'my.txt'"),
    ("changed(data=TextData)", "data: expected a Data, found the class TextData: write TextData(...)"),
    ("changed(optim='adamw')", "optim: expected an Optim, found 'adamw'"),
    ("changed(train=8)", "train: expected a Train, found 8"),
    (
        "changed(train=Train(steps=1e1))",
        "train.steps: expected an integer, found 10.0",
    ),
    ("changed(train=Train(steps='8'))", "Train.steps: expected an integer, found '8'"),
    ("changed(optim=Optim(lr='fast'))", "Optim.lr: expected a finite number, found 'fast'"),
    ("changed(optim=Optim(lr=float('nan')))", "Optim.lr must be at least 0, found nan"),
    ("changed(optim=Optim(lr=float('inf')))", "optim.lr: expected a finite number, found inf"),
    ("changed(seed=1.5)", "seed: expected an integer, found 1.5"),
    ("changed(seed=True)", "seed: expected an integer, found True"),
    ("changed(transforms=['lora'])", "transforms: expected a tuple, found ['lora']: write (a, b) or (a,)"),
    ("changed(transforms=('lora',))", "transforms: expected a tuple, each item a Transform, found ('lora',)"),
    ("changed(precision='fp32')", "expected one of 'float32', 'bfloat16', 'float16', found 'fp32'; did you mean"),
    ("changed(model=LM(259, stages=Stage(('gqa',), 2)))", "LM.stages: expected a tuple, found Stage("),
    ("changed(model=LM(259, stages=(Stage((), 2),)))", "Stage.pattern is empty"),
    ("changed(model=LM(259, stages=(Stage('gqa', 2),)))", "Stage.pattern is a tuple of blocks"),
    (
        "changed(model=LM(259, stages=(Stage((GQA,), 2),)))",
        "LM.stages.0.pattern: expected a tuple, each item a Block or a Tied or a string, found (<class",
    ),
    ("changed(model=LM(259, softcap=-3))", "LM.softcap must be above 0, or None, found -3"),
    ("data(source='file.txt')", "data.source: expected"),
    ("data(source=Text)", "found the class Text: write Text(...)"),
    ("data(seq_len=2.5)", "data.seq_len: expected an integer, found 2.5"),
    ("data(tokenizer=SentencePiece(vocab_size=0))", "vocab_size must be at least"),
    ("data(tokenizer=SentencePiece(vocab_size=-5))", "vocab_size must be at least"),
    ("data(tokenizer=SentencePiece(character_coverage=2.0))", "character_coverage must"),
    ("data(tokenizer=SentencePiece(character_coverage=-1.0))", "character_coverage must"),
    ("data(tokenizer=SentencePiece(sample_bytes=0))", "sample_bytes must be at least 1"),
]

# What --set changes; what is said of it.
SETS = [
    (["train.steps=8589934592"], "Train.steps must be at most 2147483647"),
    (["train.steps=1e12"], "expected an integer, found '1e12'"),
    (["train.log_every=99999999999999999999"], "Train.log_every must be at most 2147483647"),
    (["model.d_model=1000000"], "a step needs"),
    (["model.vocab_size=100000000000"], "a step needs"),
    (["data.seq_len=100000000000"], "a step needs"),
    (["data.batch_size=100000000000"], "a step needs"),
    (["seed=4294967296"], "Experiment.seed must lie in 0..2**32-1"),
    (["data.seed=-1"], "data.seed must be at least 0"),
    (["train"], "expected path=value"),
    (["=3"], "expected path=value"),
    (["train.steps.x=3"], "train.steps is 8 and has no fields"),
    (["model.stages.7.repeats=2"], "indices: 0..0"),
]

# Commands on no or odd folders and names; what is said. RUN is a finished run.
COMMANDS = [
    ("eval --workdir RUN --split valid", "did you mean 'validation'"),
    ("eval --workdir nowhere", "nowhere holds no training run"),
    ("eval --workdir /proc/x", "/proc/x holds no training run"),
    ("train CONFIG --workdir /proc/x", "/proc/x"),
    ("train --workdir nowhere", "nowhere holds no training run"),
    ("generate --workdir RUN --max-tokens 0", "at least 1"),
    ("generate --workdir RUN --max-tokens -4", "at least 1"),
    ("generate --workdir RUN --temperature nan", "temperature"),
    ("generate --workdir RUN --temperature inf", "temperature"),
    ("generate --workdir RUN --temperature -1", "temperature"),
    ("generate --workdir RUN --max-tokens 2000000000", "memory"),
    ("generate --workdir RUN --top-p 0.5 --temperature 0", "temperature"),
    ("generate --workdir RUN --top-k 0", "top_k"),
    ("generate --workdir RUN --seed -1", "a seed is a whole number in 0..2**32-1, found '-1'"),
    ("generate --workdir RUN --seed 99999999999999999999", "a seed is a whole number"),
    ("generate --workdir RUN --max-tokens 2e9", "invalid int value: '2e9'"),
    ("bench decode --rounds 0", "rounds"),
    ("bench decode --contexts 0", "whole numbers from 1"),
    ("bench nothing", "invalid choice: 'nothing'"),
    ("ablate CONFIG --workdir new", "defines no function ablation()"),
    ("ablate ABLATION --workdir RUN", "holds a training run"),
    ("train CONFIG --workdir ABLATED", "holds an ablation"),
    ("describe CONFIG --set model.d_modell=3", "did you mean"),
    ("runs nowhere", "nowhere is not a folder"),
    ("train CONFIG --workdir new --processes 0", "expected a whole number from 1 on, found '0'"),
    ("train CONFIG --workdir new --process -1", "expected a whole number from 0 on, found '-1'"),
    ("train CONFIG --workdir new --wait nan", "expected a number of seconds above 0, found 'nan'"),
    ("train CONFIG --workdir new --processes 2", "belong together: --coordinator is missing"),
    ("train CONFIG --workdir new --processes 1 --process 1", "--coordinator is missing"),
    ("eval --workdir RUN --coordinator localhost:80 --processes 2", "--process is missing (or JAX_PROCESS_ID"),
    ("train CONFIG --workdir new --coordinator a:80 --processes 2 --process 2", "--process must lie in 0..1"),
    ("train CONFIG --workdir new --coordinator here --processes 2 --process 0", "expected HOST:PORT"),
    ("train CONFIG --workdir new --coordinator a:99999 --processes 2 --process 0", "expected HOST:PORT"),
    (
        "eval --workdir RUN --coordinator nowhere.invalid:80 --processes 2 --process 1 --wait 0.1",
        "no coordinator at nowhere",
    ),
    (
        "train CONFIG --workdir new --profile 13:10",
        "expected FIRST:LAST, two steps from 1 on in this order, 10:13, found '13:10'",
    ),
    ("train CONFIG --workdir new --profile 0:3", "expected FIRST:LAST"),
    ("train CONFIG --workdir new --profile ten", "expected FIRST:LAST"),
    ("train CONFIG --workdir new --profile 3:99", "steps 3 to 99 cannot be traced: this start has 8 steps to do"),
    ("train CONFIG --workdir new --profile-all", "--profile-all needs --profile FIRST:LAST"),
    ("top --workdir nowhere", "nowhere is not a folder"),
    ("top --workdir RUN --every 0", "expected a number of seconds above 0, found '0'"),
    ("train CONFIG --workdir foo://x", "foo://x is no folder and no address, gs://BUCKET/PATH or s3://BUCKET/PATH"),
    ("train CONFIG --workdir gcs://bucket/run", "did you mean gs://bucket/run?"),
    ("eval --workdir gs:/bucket/run", "did you mean gs://bucket/run?"),
    ("generate --workdir S3://bucket/run", "did you mean s3://bucket/run?"),
    ("train CONFIG --workdir gs://bucket", "no folder and no address"),
    ("train CONFIG --workdir s3://bucket/../run", "no folder and no address"),
    ("describe --workdir file:///run", "no folder and no address"),
    ("launch -- train CONFIG --workdir foo://x", "no folder and no address"),
    ("ablate ABLATION --workdir gs://bucket/run", "is in a store, and this is for folders of this machine only"),
    ("record here --workdir s3://bucket/run", "is in a store"),
    ("top --workdir gs://bucket/run", "is in a store"),
    ("runs gs://bucket/run", "is in a store"),
    ("compare RUN gs://bucket/run", "is in a store"),
    ("report s3://bucket/run", "is in a store"),
    ("transform --workdir RUN --apply int8 --out s3://bucket/run", "is in a store"),
    ("launch", "the following arguments are required: COMMAND"),
    ("launch -- tarin CONFIG", "did you mean 'train'?"),
    ("launch -- train CONFIG", "--workdir"),
    ("launch --processes none -- train CONFIG --workdir new", "expected a whole number from 1 on, found 'none'"),
    ("launch --restarts -1 -- train CONFIG --workdir new", "expected a whole number from 0 on, found '-1'"),
]


# Fields of an Ablation; what is said.
ABLATIONS = [
    ({"match": "nope"}, "match: expected one of 'parameters', 'none', found 'nope'; did you mean 'none'?"),
    ({"lrs": 0.1}, "lrs: expected a tuple, found 0.1"),
    ({"lrs": (-1.0,)}, "lrs must be at least 0, found -1.0"),
    ({"lrs": (float("nan"),)}, "lrs: expected a tuple, each item a finite number"),
    ({"variants": (Variant("a", lrs=(-1.0,)),)}, "lrs must be at least 0, found -1.0"),
    ({"variants": [Variant("a")]}, "variants: expected a tuple, found [Variant("),
    ({"variants": ("a",)}, "variants: expected a tuple, each item a Variant, found ('a',)"),
    ({"contexts": (0,)}, "contexts must be at least 1, found 0"),
    ({"seeds": (-1,)}, "seeds must be at least 0, found -1"),
    ({"seeds": (2**32,)}, "seeds must lie in 0..2**32-1"),
    ({"seeds": (1.5,)}, "seeds: expected a tuple, each item an integer"),
    ({"tolerance": -1.0}, "tolerance must be at least 0"),
    ({"vary": "("}, "vary='(' is no regular expression"),
    ({"widen": -1}, "widen must be at least 0"),
]


@pytest.mark.parametrize(("fields", "said"), ABLATIONS, ids=[str(fields) for fields, _ in ABLATIONS])
def test_ablations(fields, said):
    with pytest.raises(UserError) as refusal:
        Ablation(**{"name": "n", "base": experiment(), "variants": (Variant("a"),), "contexts": (8,)} | fields)
    assert said in str(refusal.value)


@pytest.fixture(scope="module")
def place(trained, tmp_path_factory):
    """A folder to stand in: a config file, an ablation's, and its folder."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "tiny.py").write_text(CONFIG)
    (folder / "ablation.py").write_text(
        "from jaxeff.lab.ablation import Ablation, Variant\nfrom tests.train.tiny import experiment\n\n"
        "def ablation():\n    return Ablation('a', experiment(), (Variant('b'),), contexts=(8,))\n"
    )
    (folder / "ablated").mkdir()
    (folder / "ablated" / "ablation.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def here(place, trained, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("JAXEFF_CACHE", str(trained.parent / "cache"))


@pytest.mark.parametrize(("source", "said"), CONFIGS, ids=[source for source, _ in CONFIGS])
def test_config_files(tmp_path, capsys, source, said):
    whole = source.startswith(("def ", "raise ", "import ", "config =", "\\"))
    text = source.replace("\\0", "\0") if whole else f"{IMPORTS}\ndef config():\n    return {source}\n"
    (tmp_path / "odd.py").write_text(text)
    assert said in refused(capsys, "train", tmp_path / "odd.py", "--workdir", tmp_path / "w")
    assert not (tmp_path / "w" / "run.json").exists()


@pytest.mark.parametrize(("assignments", "said"), SETS, ids=[" ".join(a) for a, _ in SETS])
def test_settings(tmp_path, capsys, assignments, said):
    words = [word for a in assignments for word in ("--set", a)]
    assert said in refused(capsys, "train", "tiny.py", "--workdir", tmp_path / "w", *words)


@pytest.mark.parametrize(("command", "said"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_commands(trained, capsys, command, said):
    names = {"RUN": str(trained), "CONFIG": "tiny.py", "ABLATION": "ablation.py", "ABLATED": "ablated"}
    words = [names.get(word, word) for word in command.split()]
    try:
        assert said in refused(capsys, *words)
    except SystemExit as ended:  # refused by argparse
        err = capsys.readouterr().err
        assert ended.code == 2 and err.count("\n") == 1 and said in err


def test_a_failed_start_binds_nobody(tmp_path, capsys):
    words = ["train", "tiny.py", "--workdir", tmp_path / "w"]
    refused(capsys, *words, "--set", "data.batch_size=4000")
    assert main([*map(str, words), "--set", "train.steps=1"]) == 0


def run_json(**changes):
    """Writes fields of run.json anew; `config__train=3` goes deeper."""

    def change(run: Path):
        body = json.loads((run / "run.json").read_text())
        for path, value in changes.items():
            *outer, last = path.split("__")
            place = body
            for name in outer:
                place = place[name]
            place[last] = value
        (run / "run.json").write_text(json.dumps(body))

    return change


def file(name: str, content: bytes):
    """Replaces every file of that name."""

    def change(run: Path):
        found = [path for path in run.rglob(name) if path.is_file()]
        assert found, name
        for path in found:
            path.write_bytes(content)

    return change


def without(pattern: str):
    """Removes every file that fits."""

    def change(run: Path):
        found = [path for path in run.rglob(pattern) if path.is_file()]
        assert found, pattern
        for path in found:
            path.unlink()

    return change


def newest(change):
    """On the newest checkpoint alone."""
    return lambda run: change(run / "checkpoints" / "00000008")


# What happens to a finished run of 8 steps; how eval and train take it; what train says.
REFUSED, WARNED, QUIET = "refused", "warned", "quiet"
WORKDIRS = {
    "run.json is garbage": (file("run.json", b"{nonsense"), REFUSED, "run.json cannot be read"),
    "run.json is no text": (file("run.json", b"\xff\xfe"), REFUSED, "run.json cannot be read"),
    "run.json is a list": (file("run.json", b"[]"), REFUSED, "run.json is not what a run writes: expected an object"),
    "run.json is deep": (file("run.json", b"[" * 100000), REFUSED, "run.json cannot be read"),
    "no corpus": (run_json(corpus=3), REFUSED, "run.json is not what a run writes: corpus: expected a string, found '3'"),
    "a number for starts": (run_json(starts=3), REFUSED, "starts: expected a list, found '3'"),
    "odd starts": (run_json(starts=[{"step": "x"}]), REFUSED, "starts.0.step: expected an integer"),
    "a number for a section": (run_json(config__train=3), REFUSED, "train"),
    "a text for a number": (run_json(config__train__steps="8"), REFUSED, "steps"),
    "another width": (run_json(config__model__d_model=24), REFUSED, "d_model"),
    "a field from nowhere": (run_json(config__optim__momentum=1), REFUSED, "momentum"),
    "metrics are garbage": (file("metrics.jsonl", b"\x00\xff\n{}\n[1]\n"), WARNED, "no metrics can be read from line 1, 2, 3"),
    "metrics without a step": (file("metrics.jsonl", b'{"loss": 1.0}\n'), WARNED, "no metrics can be read from line 1"),
    "metrics of other types": (
        file("metrics.jsonl", b'{"step": 1, "loss": "low", "tokens": 3}\n'), WARNED, "no metrics can be read from line 1",
    ),
    "no metrics": (without("metrics.jsonl"), WARNED, "has no lines of steps 1 to 8"),
    "the newest record is garbage": (newest(file("metadata", b"{")), WARNED, "00000008 is damaged"),
    "the newest record is gone": (newest(without("metadata")), WARNED, "00000008 is damaged"),
    "an array of the newest is gone": (newest(without("d/*")), WARNED, "00000008 is damaged"),
    "the newest is empty": (newest(without("*")), WARNED, "00000008 is damaged"),
    "all records are garbage": (file("metadata", b"{"), REFUSED, "no checkpoint in"),
    "kept rows are damaged": (file("validation.npz", b"PK"), QUIET, ""),
    "the kept tokenizer's record is gone": (without("data.json"), QUIET, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKDIRS)
def test_workdirs(trained, tmp_path, capsys, name):
    change, how, said = WORKDIRS[name]
    run = shutil.copytree(trained, tmp_path / "run")
    change(run)
    commands = {"eval": ["eval", "--workdir", run], "train": ["train", "tiny.py", "--workdir", run]}
    heard = {}
    for command, words in commands.items():
        capsys.readouterr()
        status = main([str(word) for word in words])
        heard[command] = capsys.readouterr().err
        assert status == (2 if how == REFUSED else 0), heard[command]
        assert heard[command].count("\n") <= 3, heard[command]
    assert said in heard["train"]
    if how == QUIET:
        assert heard == {"eval": "", "train": ""}


def test_resuming_costs_one_line_for_each_checkpoint_that_is_damaged_and_no_more(trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    without("d/*")(run)
    capsys.readouterr()
    assert main(["eval", "--workdir", str(run)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") <= 3 and "no checkpoint in" in err, err


# What the environment says, the command, its exit status, and what stderr holds.
ENVIRONMENTS = {
    "a platform that is none": ({"JAX_PLATFORMS": "abacus"}, ["eval", "--workdir", "RUN"], 2, "JAX cannot start"),
    "a platform that is not here": ({"JAX_PLATFORMS": "cuda"}, ["eval", "--workdir", "RUN"], 2, "JAX cannot start"),
    "no locale": ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, ["eval", "--workdir", "RUN"], 0, ""),
    "a terminal of ASCII": ({"PYTHONIOENCODING": "ascii"}, ["runs", "RUN-ü"], 0, ""),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environments(trained, place, tmp_path, name):
    changes, words, status, said = ENVIRONMENTS[name]
    odd = shutil.copytree(trained, tmp_path / "run-ü")
    names = {"RUN": str(trained), "RUN-ü": str(odd)}
    command = [sys.executable, "-m", "jaxeff.cli", *(names.get(word, word) for word in words)]
    env = environment(place) | {"JAXEFF_CACHE": os.environ["JAXEFF_CACHE"]} | changes
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, timeout=120)
    err = done.stderr.decode()
    assert done.returncode == status, err
    assert said in err and err.count("\n") == (status != 0), err


def test_a_cache_in_a_home_that_is_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAXEFF_CACHE", "~nobody-here/x")
    assert "JAXEFF_CACHE" in refused(capsys, "train", "tiny.py", "--workdir", tmp_path / "w")


def test_closed_streams(trained, place):
    """The file that is opened next must not become the standard output."""
    words = " ".join([sys.executable, "-m", "jaxeff.cli", "runs", str(trained)])
    done = subprocess.run(["sh", "-c", f"{words} >&- 2>&-"], cwd=place, env=environment(place), timeout=60)
    assert done.returncode == 0
