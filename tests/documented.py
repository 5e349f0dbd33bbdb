"""What the documentation's pages hold: fenced blocks, command lines, and the classes that their code defines."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
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


def run(page: Path, line: int, text: str, namespace: dict) -> None:
    """Executes a block; blank lines before it put the page's own line number into a traceback."""
    exec(compile("\n" * (line - 1) + text, name(page), "exec"), namespace)


def defined(page: Path, what: str):
    """What a page's Python calls `what`: its blocks are run from the top until one defines it."""
    namespace: dict = {"__name__": "docs"}
    for line, text in blocks(page, "python"):
        run(page, line, text, namespace)
        if what in namespace:
            return namespace[what]
    raise LookupError(f"{name(page)} defines no {what}")
