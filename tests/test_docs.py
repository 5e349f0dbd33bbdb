"""The documentation is true: its Python runs, its `jaxeff` commands parse, their settings apply, links and targets exist."""

import argparse
import re
import shlex

import pytest

from jaxeff.mixers.registry import MIXERS
from tests.documented import ROOT, blocks, commands, name, run

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
COMMANDS = sorted({line for page in PAGES for line in commands(page, "jaxeff")})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """A page's blocks are one program, from top to bottom."""
    monkeypatch.chdir(tmp_path)
    registry = dict(MIXERS)
    namespace: dict = {"__name__": "docs"}
    try:
        for line, text in blocks(page, "python"):
            run(page, line, text, namespace)
    finally:
        MIXERS.clear()
        MIXERS.update(registry)


def parsed(line: str) -> tuple[list[str], argparse.Namespace]:
    """The words after `jaxeff`, and what the command line makes of them."""
    from jaxeff.cli import parser

    words = shlex.split(line, comments=True)
    words = words[words.index("jaxeff") + 1 :]
    arguments = parser().parse_args(words)
    return (arguments.words, parser().parse_args(arguments.words)) if words[0] == "launch" else (words, arguments)


@pytest.mark.parametrize("line", COMMANDS)
def test_jaxeff_commands_parse(line):
    from jaxeff.bench import registry

    words, arguments = parsed(line)
    if words[0] == "bench":
        benchmark = argparse.ArgumentParser()
        registry.add_arguments(benchmark)
        assert benchmark.parse_args(arguments.arguments).benchmark
    for word in words:
        if word.startswith("configs/") and "X" not in word:
            assert (ROOT / word).is_file(), f"{word} is not there"


@pytest.mark.parametrize("line", [line for line in COMMANDS if "--set" in line])
def test_settings_apply(line):
    from jaxeff.train.config_file import load
    from jaxeff.train.overrides import override

    _, arguments = parsed(line)
    for config in getattr(arguments, "experiments", None) or [arguments.config]:
        before = load(ROOT / config)
        assert arguments.set and override(before, arguments.set) != before, f"{line} changes nothing"


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
