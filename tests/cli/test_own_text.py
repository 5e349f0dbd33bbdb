"""`jaxeff train --data`: from files to a trained model, and how many tokens it has."""

import dataclasses
import json
import random
import shutil

import pytest

from jaxeff.cli import main
from jaxeff.core.errors import UserError
from jaxeff.data import Copy, Grammar, SentencePiece, Text
from jaxeff.train.loop import fit
from jaxeff.train.overrides import override
from jaxeff.train.own_text import on_text, tokens_for
from jaxeff.train.trained import load_trained
from jaxeff.train.vocabulary import agreeing, declared
from jaxeff.train.workdir import stored_experiment
from tests.train.tiny import experiment

CONFIG = """
from tests.train.tiny import experiment


def config():
    return experiment("data.tokenizer=sentence_piece", "data.seq_len=16", "train.steps=2")
"""
PIECES = "data.tokenizer=sentence_piece"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Text as a user has it, and a config that asks for more tokens than it can give."""
    folder = tmp_path_factory.mktemp("own")
    texts = [document.text for document in Grammar(120).documents(lambda *told: None)]
    words = random.Random(0).choices("one dog and a cat sat on the mat \n\n".split(" "), k=2000)
    (folder / "my.txt").write_text(" ".join(words), encoding="utf-8")
    lines = [json.dumps({"story": text}) for text in texts]
    (folder / "my.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "c.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEFF_CACHE", str(folder / "cache"))
        yield folder


def train(folder, workdir, *words) -> int:
    return main(["train", str(folder / "c.py"), "--workdir", str(workdir), *map(str, words)])


@pytest.fixture(scope="module")
def mine(folder):
    """A run on my.txt."""
    assert train(folder, folder / "mine", "--data", folder / "my.txt") == 0
    return folder / "mine"


def test_a_text_file_becomes_a_model(folder, mine):
    e = stored_experiment(mine)
    assert e.data.source.paths == (str(folder / "my.txt"),) and e.data.source.piece_chars == 512
    run = load_trained(mine)
    assert run.prepared.statistics["documents"]["train"] > 3
    largest = run.prepared.tokenizer.vocab_size
    assert 261 < largest < 512 and e.data.tokenizer.vocab_size == e.model.vocab_size == largest
    assert run.weights["embed"].shape[0] == largest


def test_the_size_is_said_and_the_same_command_goes_on(folder, mine, tmp_path, capsys):
    workdir = shutil.copytree(mine, tmp_path / "w")
    stored = json.loads((workdir / "run.json").read_text())
    capsys.readouterr()
    assert train(folder, workdir, "--data", folder / "my.txt") == 0
    size = stored["config"]["model"]["vocab_size"]
    assert f"data.tokenizer.vocab_size: {size}, the nearest to 512 that this text can give\n" in capsys.readouterr().out
    again = json.loads((workdir / "run.json").read_text())
    assert again["config"] == stored["config"] and len(again["starts"]) == 2
    assert train(folder, workdir, "--data", folder / "my.txt", "--set", "optim.lr=1") == 2
    assert "optim.lr: 0.01 there, 1.0 now" in capsys.readouterr().err


def test_text_that_moved(folder, mine, tmp_path):
    """The same text elsewhere is the same; another text is refused."""
    workdir, moved = shutil.copytree(mine, tmp_path / "w"), tmp_path / "my.txt"
    shutil.copy(folder / "my.txt", moved)
    assert train(folder, workdir, "--data", moved) == 0
    moved.write_text(moved.read_text() + "the end\n")
    assert train(folder, workdir, "--data", moved) == 2


def test_a_size_that_was_asked_for_is_not_changed(folder, tmp_path, capsys):
    words = ("--data", folder / "my.txt", "--set", "data.tokenizer.vocab_size=1024")
    assert train(folder, tmp_path / "w", *words) == 2
    assert "the largest possible vocab_size is" in capsys.readouterr().err


def test_json_lines(folder, tmp_path, capsys):
    words = ("--data", folder / "my.jsonl", "--set", "data.tokenizer=bytes")
    assert train(folder, tmp_path / "w", *words, "--field", "storey") == 2
    assert "did you mean 'story'?" in capsys.readouterr().err
    e = on_text(experiment(), [str(folder / "my.jsonl")], "story")
    assert e.data.source == Text((str(folder / "my.jsonl"),), "story") and e.model.vocab_size == 259
    assert sum(e.data.prepare().statistics["documents"].values()) == 120


def test_what_cannot_be_read(folder, tmp_path, capsys):
    assert train(folder, tmp_path / "w", "--data", folder / "mi.txt") == 2
    assert "did you mean 'my.txt'" in capsys.readouterr().err
    assert train(folder, tmp_path / "w", "--field", "text") == 2
    assert "give --data FILE as well" in capsys.readouterr().err
    with pytest.raises(UserError, match="trains on Copy, not on text"):
        on_text(dataclasses.replace(experiment(), data=Copy()), ["my.txt"])


def test_short_texts_get_fewer_tokens(folder, tmp_path):
    assert [tokens_for(n) for n in (1, 100_000, 1_000_000, 100_000_000)] == [512, 512, 4096, 262144]
    (tmp_path / "long.txt").write_text("a b " * 50_000)
    for asked, found in ((1024, 512), (2048, 512), (300, 300)):
        e = on_text(experiment(PIECES, f"data.tokenizer.vocab_size={asked}"), [str(folder / "my.txt")])
        assert e.data.tokenizer.vocab_size == e.model.vocab_size == found
    e = on_text(experiment(PIECES, "data.tokenizer.vocab_size=2048"), [str(tmp_path / "long.txt")])
    assert e.data.tokenizer.vocab_size == e.model.vocab_size == 512
    assert on_text(experiment(), [str(folder / "my.txt")]).model.vocab_size == 259


def test_short_texts_are_cut_finer(tmp_path):
    def pieces(n: int, **fields):
        path = tmp_path / f"{n}.txt"
        path.write_text("a" * n)
        return Text((str(path),), **fields).finer().piece_chars

    assert [pieces(n) for n in (0, 1, 5_000, 100_000, 1_000_000, 2_000_000)] == [None, 512, 512, 512, 8192, None]
    assert pieces(5_000, piece_chars=0) == 0
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    assert Text((str(tmp_path / "a.jsonl"),), "text").finer().piece_chars is None


def test_the_models_size_follows_the_datas():
    tokens = "data.tokenizer.vocab_size"
    e = experiment(PIECES, f"{tokens}=512")
    assert e.model.vocab_size == declared(e.data) == 512
    assert override(e, [f"{tokens}=300"]).model.vocab_size == 300
    assert override(e, ["data.tokenizer=bytes"]).model.vocab_size == 259
    assert override(e, [f"{tokens}=300", "model.vocab_size=320"]).model.vocab_size == 320
    assert override(e, ["optim.lr=1"]).model == e.model
    wide = override(e, ["model.vocab_size=640"])  # padded on purpose
    assert override(wide, [f"{tokens}=300"]).model.vocab_size == 640
    assert override(wide, [f"{tokens}=800"]).model.vocab_size == 800
    task = dataclasses.replace(e, data=Copy())
    assert agreeing(e, task).model.vocab_size == task.data.vocab_size


def test_a_vocabulary_of_another_text_is_left_alone(folder, tmp_path):
    """What cannot be put right without being asked stays an error, in Python as well."""
    e = experiment(PIECES)
    assert isinstance(e.data.tokenizer, SentencePiece)
    with pytest.raises(UserError, match="largest possible vocab_size"):
        fit(e, tmp_path / "w")
