"""`TextData.prepare`: the whole way from a source to batches, idempotent and safe when killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.data import Bytes, Grammar, SentencePiece, TextData, text

DATA = TextData(
    source=Grammar(60), tokenizer=SentencePiece(400), seq_len=32, batch_size=4, valid_fraction=0.1, test_fraction=0.1
)
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def prepared(cache):
    return DATA.prepare(cache)


def files(root: Path) -> dict[str, tuple]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in root.rglob("*")}


def documents(prepared, split: str) -> list[str]:
    """The texts of a split, put together again from its rows."""
    tokenizer, found = prepared.tokenizer, []
    for batch in prepared.eval(split):
        for tokens_T, ids_T in zip(batch["tokens"], batch["segment_ids"]):
            for segment in set(ids_T.tolist()) - {0}:
                found.append(tokens_T[ids_T == segment])
    whole = [ids for ids in found if ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id]
    return [tokenizer.decode(ids) for ids in whole]


def test_rows_hold_the_documents(cache):
    prepared = dataclasses.replace(DATA, seq_len=600).prepare(cache)
    found = sum((documents(prepared, split) for split in ("train", "validation", "test")), [])
    assert sorted(found) == sorted(d.text for d in Grammar(60).documents(lambda *_: None))


def test_statistics_are_consistent_and_json(prepared):
    s = json.loads(json.dumps(prepared.statistics))
    assert sum(s["documents"].values()) == 60 and s["source"] == "Grammar" and s["vocab_size"] == 400
    for split, n_targets in s["targets"].items():
        assert n_targets == s["tokens"][split] + s["documents"][split]
        assert n_targets == sum(batch["loss_mask"].sum() for batch in prepared.eval(split))
    assert 1 < s["bytes_per_token"] < 8 and s["seconds"] > 0


def test_bytes_of_the_targets_are_the_bytes_of_the_split(prepared):
    n_bytes = sum(
        prepared.tokenizer.token_bytes[batch["tokens"][:, 1:]][batch["loss_mask"][:, :-1] > 0].sum()
        for batch in prepared.eval("test")
    )
    assert n_bytes == prepared.statistics["bytes"]["test"]


def test_the_second_call_does_no_work(cache, prepared):
    before, stages = files(cache), []
    again = DATA.prepare(cache, report=lambda *stage: stages.append(stage))
    assert files(cache) == before and not stages
    assert again.fingerprint == prepared.fingerprint
    assert next(again.train())["tokens"].tolist() == next(prepared.train())["tokens"].tolist()


def test_all_stages_are_reported_to_their_end(tmp_path):
    last = {}
    DATA.prepare(tmp_path, report=lambda stage, done, total: last.update({stage: (done, total)}))
    assert list(last)[:3] == ["reading the corpus", "writing the corpus", "training the tokenizer"]
    assert {"tokenizing train", "packing test"} < set(last)
    assert all(done == total > 0 for done, total in last.values())


def test_the_fingerprint_follows_text_split_and_tokenizer_alone(cache, prepared):
    def fingerprint(**changed):
        return dataclasses.replace(DATA, **changed).prepare(cache).fingerprint

    assert fingerprint(seq_len=16, batch_size=2, seed=5) == prepared.fingerprint
    changes = [
        {"source": Grammar(61)},
        {"valid_fraction": 0.2},
        {"tokenizer": Bytes()},
        {"max_bytes": 5000},
        {"tokenizer": SentencePiece(390)},
    ]
    assert len({prepared.fingerprint, *(fingerprint(**changed) for changed in changes)}) == len(changes) + 1


def test_the_tokenizer_sees_the_training_split_alone(tmp_path):
    lines = [json.dumps({"t": f"{letter * 50} word"}) for letter in "abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = TextData(
        source=text(tmp_path / "a.jsonl", "t"),
        tokenizer=SentencePiece(280),
        seq_len=16,
        batch_size=1,
        valid_fraction=0.2,
        test_fraction=0.2,
    )
    prepared = data.prepare(tmp_path / "cache")
    pieces = {piece.decode() for piece in prepared.tokenizer.pieces if len(piece) > 1}

    def letters(split):
        return {
            document[0]
            for document in documents(dataclasses.replace(data, seq_len=600).prepare(tmp_path / "cache"), split)
        }

    learnt = {piece[0] for piece in pieces if len(set(piece)) == 1 and piece.strip()}
    assert learnt and not learnt & (letters("validation") | letters("test"))


def test_training_and_evaluation_batches(prepared):
    state = prepared.train().get_state()
    assert state == {
        "next_batch": 0,
        "fingerprint": prepared.fingerprint,
        "seed": 0,
        "seq_len": 32,
        "batch_size": 4,
    }
    assert next(prepared.train(1, 2))["tokens"].shape == (2, 32)
    assert next(iter(prepared.eval("test", 7)))["tokens"].shape == (7, 32)


def test_unknown_and_absent_splits(cache, prepared):
    with pytest.raises(UserError, match="'tests'.*'test'"):
        prepared.eval("tests")
    with pytest.raises(UserError, match="no test split; its fraction"):
        dataclasses.replace(DATA, test_fraction=0.0).prepare(cache).eval("test")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seq_len": 1}, "data.seq_len must be at least 2, not 1"),
        ({"batch_size": 0}, "data.batch_size must be at least 1"),
        ({"max_bytes": 0}, "data.max_bytes must be at least 1"),
        ({"valid_fraction": 1.5}, r"data.valid_fraction must be in \[0, 1\), not 1.5"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
    ],
)
def test_values_out_of_range_are_named(changed, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(DATA, **changed)


def test_a_config_is_hashable_and_json():
    assert hash(TextData()) == hash(TextData()) and TextData() == TextData()
    assert json.loads(json.dumps(dataclasses.asdict(DATA)))["tokenizer"]["vocab_size"] == 400


def python(code: str, cache, **options) -> subprocess.CompletedProcess:
    """`code` in a process of its own, with `data` = DATA and `cache`."""
    lines = [
        "import os, signal, sys",
        "from jaxeff.data import *",
        f"data, cache = {DATA!r}, {os.fspath(cache)!r}",
        code,
    ]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, env=environment, timeout=60, **options
    )


@pytest.mark.parametrize("stage", ["writing the corpus", "training the tokenizer", "tokenizing validation"])
def test_killed_at_any_stage_it_starts_again_from_what_was_whole(tmp_path, prepared, stage):
    killed = python(f"data.prepare(cache, lambda s, done, total: s == {stage!r} and os.kill(os.getpid(), 9))", tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = DATA.prepare(tmp_path)
    assert again.fingerprint == prepared.fingerprint
    assert all(np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(again.eval("train"), prepared.eval("train")))


def test_two_processes_at_once_agree(tmp_path, prepared):
    code = "print(data.prepare(cache).fingerprint)"
    lines = f"from jaxeff.data import *\ndata, cache = {DATA!r}, {str(tmp_path)!r}\n{code}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", lines], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT}
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [prepared.fingerprint] * 2
    assert not list(tmp_path.rglob(".partial-*"))


def test_nothing_heavy_on_import_and_never_tensorflow(tmp_path):
    done = python(
        "heavy = {'tensorflow_datasets', 'grain', 'sentencepiece', 'tensorflow', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "batch = next(data.prepare(cache).train())\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)\n"
        "print(batch['tokens'].shape)",
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("(4, 32)\n", "")
