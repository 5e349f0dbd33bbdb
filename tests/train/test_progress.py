"""What is shown while a run goes on."""

import io

import pytest
from rich.console import Console

from jaxeff.train.progress import Bars, Lines, Silent, summary

LINE = {"step": 3, "loss": 2.5, "tokens_per_s": 12345.6, "skipped": 0}


def test_summary():
    assert summary(LINE) == "loss 2.5000  12,346 tokens/s"
    assert summary(LINE, "validation 1.2500 bits per byte").endswith("validation 1.2500 bits per byte")
    assert summary(LINE | {"loss": None, "tokens_per_s": None, "skipped": 2}) == "loss not finite  2 steps skipped"


def test_lines_tell_each_evaluation_and_not_every_step():
    out = io.StringIO()
    with Lines(out, every=1e6) as report:
        report.last = 1e12
        report.step(1, 4, LINE)
        report.step(2, 4, LINE, "validation 1.2500 bits per byte")
        report.say("something")
    lines = out.getvalue().splitlines()
    assert len(lines) == 2 and lines[0].startswith("step 2/4  loss 2.5000") and lines[0].endswith(" left")
    assert lines[1] == "something"


def test_lines_tell_each_stage_once():
    out = io.StringIO()
    report = Lines(out, every=1e6)
    for text, done in (("packing", 0), ("packing", 5), ("compiling", 0)):
        report.stage(text, done, 10 if text == "packing" else 1)
    assert out.getvalue().splitlines() == ["packing 0/10", "compiling"]


def test_lines_do_not_tell_the_end_of_what_has_no_parts():
    out = io.StringIO()
    report = Lines(out, every=0)
    for done in (0, 1):
        report.stage("initial weights", done, 1)
    report.stage("reading", 1, 1)
    assert out.getvalue().splitlines() == ["initial weights", "reading"]


def test_bars_on_a_terminal():
    out = io.StringIO()
    with Bars(Console(file=out, force_terminal=True, width=100)) as report:
        report.stage("packing [train]", 1, 2)
        for step in (1, 2):
            report.step(step, 2, LINE | {"loss": None}, "validation 1.2500 bits per byte")
        report.say("[not markup]")
    assert (
        "loss not finite" in out.getvalue()
        and "1.2500 bits per byte" in out.getvalue()
        and "[not markup]" in out.getvalue()
    )


@pytest.mark.parametrize("report", [Silent(), Lines(io.StringIO())])
def test_warnings_go_to_stderr(report, capsys):
    report.warn("a checkpoint is damaged")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "jaxeff: a checkpoint is damaged\n")
