"""`jaxeff eval --text`: other text by the tokenizer that a workdir keeps."""

import json
import re
import shutil

import pytest

from jaxeff.cli import main
from jaxeff.data import Grammar

READINGS = (
    r"loss (\d\.\d{4}), perplexity (\d+\.\d{4}), accuracy 0\.\d{4}, bits per byte (\d\.\d{4})"
    r" \(([\d,]+) targets, ([\d,]+) bytes\)"
)


@pytest.fixture(scope="module")
def texts():
    return [document.text for document in Grammar(20).documents(lambda *told: None)]


@pytest.fixture
def workdir(trained, tmp_path, monkeypatch):
    """The workdir alone: neither its corpus nor a cache is there."""
    monkeypatch.setenv("JAXEFF_CACHE", str(tmp_path / "nothing"))
    return shutil.copytree(trained, tmp_path / "moved")


def readings(capsys, workdir, *words) -> tuple[str, re.Match]:
    """What the line is about, and its numbers."""
    capsys.readouterr()
    assert main(["eval", "--workdir", str(workdir), *map(str, words)]) == 0
    what, _, numbers = capsys.readouterr().out.splitlines()[-1].partition(" at step 8: ")
    return what, re.fullmatch(READINGS, numbers)


def refused(capsys, *words) -> str:
    """The one line of a refusal."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("jaxeff: error: ") and err.count("\n") == 1
    return err


def test_every_byte_of_a_file_is_scored(workdir, texts, tmp_path, capsys):
    text = "".join(texts) + "naïve €\n"
    (tmp_path / "other.txt").write_text(text, encoding="utf-8")
    what, found = readings(capsys, workdir, "--text", tmp_path / "other.txt")
    n_bytes = len(text.encode())
    assert what == str(tmp_path / "other.txt") and found[5] == f"{n_bytes:,}"
    assert found[4] == f"{n_bytes + 1:,}"  # bytes are this run's tokens; the end of the document is one more
    bits = float(found[1]) * (n_bytes + 1) / n_bytes / 0.6931
    assert abs(bits - float(found[3])) < 2e-3
    assert not (tmp_path / "nothing").exists()


def test_json_lines_and_folders(workdir, texts, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = [json.dumps({"story": text, "id": i}) for i, text in enumerate(texts)]
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    _, alone = readings(capsys, workdir, "--text", folder / "a.jsonl", "--field", "story")
    n_bytes = sum(len(text.encode()) for text in texts)
    assert alone[5] == f"{n_bytes:,}" and alone[4] == f"{n_bytes + len(texts):,}"
    assert readings(capsys, workdir, "--text", folder, "--field", "story")[1][0] == alone[0]
    (tmp_path / "b.txt").write_text(texts[0], encoding="utf-8")
    what, both = readings(capsys, workdir, "--text", folder, "--text", tmp_path / "b.txt", "--field", "story")
    assert what == f"{folder}, {tmp_path / 'b.txt'}" and both[5] == f"{n_bytes + len(texts[0]):,}"


def test_a_split_is_scored_as_before(trained, workdir, capsys):
    assert readings(capsys, workdir)[1][0] == readings(capsys, trained)[1][0]


def test_text_that_cannot_be(workdir, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    eval_ = ("eval", "--workdir", workdir, "--text")
    assert "did you mean 'a.txt'" in refused(capsys, *eval_, tmp_path / "aa.txt")
    assert "there is no text in" in refused(capsys, *eval_, tmp_path / "empty.txt")
    assert "field='text' is for .jsonl files" in refused(capsys, *eval_, tmp_path / "a.txt", "--field", "text")
    assert "did you mean 'text'?" in refused(capsys, *eval_, tmp_path / "a.jsonl", "--field", "texts")
    assert "say which field" in refused(capsys, *eval_, tmp_path / "a.jsonl")
    assert "give --text FILE as well" in refused(capsys, "eval", "--workdir", workdir, "--field", "text")
    with pytest.raises(SystemExit):
        main(["eval", "--workdir", str(workdir), "--text", "a.txt", "--split", "test"])
    assert "argument --split: not allowed with argument --text" in capsys.readouterr().err
