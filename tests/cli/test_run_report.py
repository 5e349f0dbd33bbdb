"""`jaxeff report`: a page of a run that is whole in itself, whatever its files hold."""

import html
import json
import re
from html.parser import HTMLParser

import pytest

from jaxeff.cli import main
from jaxeff.lab.folders import lines, read
from jaxeff.lab.run_curves import MANY, plot, width
from jaxeff.lab.run_report import write
from tests.cli.workdirs import copied, edited, refused, relogged, said

VOID = {"meta", "wbr", "br", "path", "use", "stop", "rect"}


class Page(HTMLParser):
    """Its text, and whether every element is closed where it should be."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.words, self.sources = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title", "desc"} & set(self.open):
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)


@pytest.fixture
def run(trained, tmp_path):
    return copied(trained, tmp_path / "run")


def page(capsys, run) -> tuple[str, Page]:
    assert said(capsys, "report", run) == f"{run}/report.html\n"
    text = (run / "report.html").read_text()
    return text, Page(text)


def test_what_it_tells(run, capsys):
    text, found = page(capsys, run)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for words in (
        "Run: run",
        f"validation bits per byte {last['eval_bits_per_byte']:.4f} at step 8",
        "steps 8 of 8, finished",
        f"tokens trained on {last['tokens']:,}",
        "On the first 2 batches of the validation split, at step 8.",
        "optim: Optim name adamw lr 0.01",
        "data: TextData source Grammar",
        "split train validation test documents",
        "1. at step 0",
        "Python",
    ):
        assert words in found.text, words
    assert text.count('role="img"') == 2 and "nats per token" in text and "tokens trained on" in text
    assert "2 evaluations, not smoothed" in found.text and "It is not smoothed." in found.text


def test_it_needs_nothing_else(run, capsys):
    text, found = page(capsys, run)
    assert all(source.startswith("#") for source in found.sources)
    assert not re.search(r"@import|<script|<link|url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "currentColor" in text
    assert 'name="viewport"' in text


def test_all_text_is_escaped(run, capsys):
    evil = "<script>alert('1')</script>&$\\x_{$\x1b"
    body = json.loads((run / "run.json").read_text())
    body["config"]["optim"]["name"] = body["data"][evil] = evil
    body["config"]["objective"]["follow"] = evil
    body["data"]["documents"][evil] = evil
    body["starts"][0] |= {"device": evil, "command": [evil], "git": {"commit": evil, "changed": [evil]}, "host": evil}
    body["starts"][0]["packages"][evil] = body["starts"][0]["mesh"][evil] = evil
    (run / "run.json").write_text(json.dumps(body))
    relogged(run, lambda line: line | {f"eval_{evil}": 1.0})
    text, found = page(capsys, run)
    assert "<script" not in text and "\x1b" not in text and text.count(html.escape("<script>alert")) > 8


def test_a_long_run_is_smoothed_and_says_so(run, capsys):
    text = [json.dumps({"step": i, "tokens": 100 * i, "loss": 5 - i / 200}) for i in range(1, 201)]
    (run / "metrics.jsonl").write_text("\n".join(text))
    _, found = page(capsys, run)
    assert "The strong line is a centred mean over 9 logged steps, the faint one each of them." in found.text
    assert "No evaluation yet." in found.text and "not evaluated yet" in found.text
    assert [width(range(n)) for n in (1, MANY - 1, MANY, 200)] == [1, 1, 3, 9]
    assert plot(read(run), []) is None


@pytest.mark.parametrize("kept", [0, 1])
def test_hardly_anything_logged(run, capsys, kept):
    text = (run / "metrics.jsonl").read_text().splitlines()[:kept]
    (run / "metrics.jsonl").write_text("\n".join(text))
    _, found = page(capsys, run)
    assert ("Nothing was logged yet." in found.text) is (kept == 0) and "There was none yet." in found.text


def test_files_of_another_shape(run, capsys):
    (run / "run.json").write_text(
        json.dumps(
            {"config": {"train": 3, "x": [[1], {"type": "a.B", "y": None}]}, "corpus": "", "data": {}, "starts": []}
        )
    )
    relogged(run, lambda line: line | {"loss": None, "eval_bits_per_byte": None, "eval_loss": "x", "skipped": 2})
    _, found = page(capsys, run)
    assert "Nothing was recorded." in found.text and "None recorded." in found.text and "steps skipped 2" in found.text
    edited(run, {"train": {"eval_batches": "all"}})
    body = json.loads((run / "run.json").read_text())
    body |= {
        "data": {"bytes": {"train": None}},
        "starts": [{"step": 0, "packages": 1, "git": None, "mesh": 2, "command": "x"}],
    }
    (run / "run.json").write_text(json.dumps(body))
    assert "no repository" in page(capsys, run)[1].text


def test_every_start(run, capsys):
    body = json.loads((run / "run.json").read_text())
    again = body["starts"][0] | {"step": 4, "git": {"commit": "abc", "changed": [f" M f{i}.py" for i in range(12)]}}
    body["starts"].append(again)
    (run / "run.json").write_text(json.dumps(body))
    _, found = page(capsys, run)
    assert (
        "2. at step 4" in found.text
        and "commit abc, with changes: M f0.py," in found.text
        and "and 2 more" in found.text
    )


def test_garbage_among_the_metrics(run, capsys):
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b"\xff\n{\n")
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().err == f"jaxeff: {run}/metrics.jsonl: 2 lines cannot be read, the others are shown\n"
    assert "2 lines cannot be read" in Page((run / "report.html").read_text()).text


def test_elsewhere(run, tmp_path, capsys):
    out = tmp_path / "pages" / "one.html"
    assert said(capsys, "report", run, "--out", out) == f"{out}\n"
    assert out.exists() and not (run / "report.html").exists()
    assert write(run, out) == out and len(lines(run, print)) == 8
    (tmp_path / "folder").mkdir()
    assert "is a directory" in refused(capsys, "report", run, "--out", tmp_path / "folder")


def test_folders_that_cannot_be(trained, tmp_path, capsys):
    assert "holds no training run (no run.json)" in refused(capsys, "report", tmp_path)
    assert "did you mean 'trained'" in refused(capsys, "report", trained.with_name("trainedd"))
    (tmp_path / "run.json").write_text("[1")
    assert "run.json cannot be read" in refused(capsys, "report", tmp_path)
    assert not (tmp_path / "report.html").exists()
