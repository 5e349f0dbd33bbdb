"""`jaxeff generate`: what is drawn, how it is shown, and how several prompts are answered."""

import argparse
import functools
import io
import sys

import pytest

from jaxeff.cli import main
from jaxeff.cli.speaker import speaker
from jaxeff.cli.streaming import written


def said(capsys, *words) -> str:
    """What a command prints."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """The run is read once for all calls of this file."""
    from jaxeff.cli import generate

    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(
            lambda workdir, n: speaker(
                argparse.Namespace(model=None, config=None, any_base=False, workdir=[workdir]), n
            )
        )
        patch.setattr(generate, "speaker", lambda args, n: read(args.workdir[0], n))
        yield


@pytest.fixture
def generate(trained, capsys):
    """`jaxeff generate` with a few tokens."""
    return lambda *words: said(capsys, "generate", "--workdir", trained, "--max-tokens", "6", *words)


def test_text_is_drawn_unless_temperature_is_0(generate):
    first = generate("--prompt", "the cat")
    assert first.startswith("the cat") and first.endswith("\n")
    assert generate("--prompt", "the cat") == first
    usual = ("--temperature", "0.8", "--top-p", "0.95", "--seed", "0")
    assert generate("--prompt", "the cat", *usual) == first
    assert generate("--prompt", "the cat", "--seed", "1") != first
    greedy = generate("--prompt", "the cat", "--temperature", "0")
    assert generate("--prompt", "the cat", "--temperature", "0", "--seed", "1") == greedy
    assert generate("--prompt", "the cat", "--top-k", "1") == greedy  # no filter is added to the one asked for


def test_several_prompts_are_answered_as_each_alone(generate):
    alone = [generate("--prompt", prompt, "--temperature", "0") for prompt in ("the cat", "naïve")]
    assert generate("--prompt", "the cat", "--prompt", "naïve", "--temperature", "0") == "".join(alone)


def test_the_answer_is_shown_as_it_is_made(trained, monkeypatch):
    """Each token is written before the next one is asked for."""
    shown = io.StringIO()
    seen = []

    def slow(*args, **options):
        for token in b"cat":
            seen.append(shown.getvalue())
            yield token + 3

    monkeypatch.setattr(sys.modules["jaxeff.models.generate"], "stream", slow)
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["generate", "--workdir", str(trained), "--prompt", "a "]) == 0
    assert seen == ["", "a c", "a ca"] and shown.getvalue() == "a cat\n"


def test_half_a_letter_waits_for_its_other_half(monkeypatch):
    pieces, seen = "né€".encode() + b"\xe2", []
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)

    def tokens():
        for byte in pieces:
            seen.append(shown.getvalue())
            yield byte

    text = written(tokens(), lambda found: bytes(found).decode(errors="replace"), "> ")
    assert seen == ["", "> n", "> n", "> né", "> né", "> né", "> né€"]
    assert text == "né€\ufffd" and shown.getvalue() == "> né€\ufffd\n"  # a half that stays one is shown at the end


def test_nothing_made_leaves_the_prompt(monkeypatch, capsys):
    assert written(iter(()), lambda found: "", "the end") == "" and capsys.readouterr().out == "the end\n"


def test_a_terminal_without_these_letters(trained, monkeypatch):
    for words in (["--prompt", "aï €"], ["--prompt", "aï €", "--prompt", "é"]):
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", out)
        words += ["--max-tokens", "6", "--temperature", "0"]
        assert main(["generate", "--workdir", str(trained), *words]) == 0
        assert out.buffer.getvalue().startswith(b"a? ?")


def test_an_error_comes_before_any_text(trained, capsys):
    capsys.readouterr()
    assert main(["generate", "--workdir", str(trained), "--prompt", "a", "--max-tokens", "0"]) == 2
    assert capsys.readouterr().out == ""
