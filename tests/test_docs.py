"""The documentation is true: its Python runs, its `jaxeff` commands parse, its links and make targets exist."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from jaxeff.mixers.registry import MIXERS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line number, text) of every fenced block in a language."""
    text = page.read_text()
    return [(text[: m.start()].count("\n") + 2, m[2]) for m in FENCE.finditer(text) if m[1] == language]


def commands(page: Path, program: str) -> list[str]:
    """The command lines of a page's `sh` blocks that start `program`, continued lines joined, comments dropped."""
    lines = [line for _, text in blocks(page, "sh") for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(rf"(\w+=\S+ )*{program} ", line)]


COMMANDS = sorted({line for page in PAGES for line in commands(page, "jaxeff")})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """A page's blocks are one program, from top to bottom."""
    monkeypatch.chdir(tmp_path)
    registry = dict(MIXERS)
    namespace: dict = {"__name__": "docs"}
    try:
        for line, text in blocks(page, "python"):
            # Blank lines before it put the page's own line number into a traceback.
            exec(compile("\n" * (line - 1) + text, name(page), "exec"), namespace)
    finally:
        MIXERS.clear()
        MIXERS.update(registry)


@pytest.mark.parametrize("line", COMMANDS)
def test_jaxeff_commands_parse(line):
    from jaxeff.bench import registry
    from jaxeff.cli import parser

    words = shlex.split(line, comments=True)
    words = words[words.index("jaxeff") + 1 :]
    arguments = parser().parse_args(words)
    if words[0] == "bench":
        benchmark = argparse.ArgumentParser()
        registry.add_arguments(benchmark)
        assert benchmark.parse_args(arguments.arguments).benchmark
    for word in words:
        if word.startswith("configs/") and "X" not in word:
            assert (ROOT / word).is_file(), f"{word} is not there"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands(page, "make"):
        words = shlex.split(line, comments=True)
        asked = [word for word in words[words.index("make") + 1 :] if "=" not in word]
        assert asked and set(asked) <= targets, line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_files_exist(page):
    """Paths of the package that a page names in code are there; X, NAME and TOPIC stand for the reader's own."""
    for word in re.findall(r"`((?:jaxeff|configs|tests|docs)/[\w./-]+)`", page.read_text()):
        if not re.search(r"\b(X|NAME|TOPIC)\b", word) and word != "jaxeff/mixers/decay.py":
            assert (ROOT / word).exists(), f"{name(page)} names {word}"
