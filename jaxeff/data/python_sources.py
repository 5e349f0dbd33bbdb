"""The corpus that every machine has: the documentation and the code of the running Python's standard library.

Nothing is shipped and nothing is downloaded. The text differs between Python versions, so its fingerprint belongs
into every record of a run. The texts are under the licence of Python and stay on the machine that they came from.
"""

import ast
import io
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxeff.core.errors import UserError
from jaxeff.data.cache import Report
from jaxeff.data.documents import Document, fingerprint_files, read_bytes

# Tests are not installed everywhere; the tables are generated and repetitive; the last two left the library later.
_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "idlelib",
    "lib2to3",
}
# Written when Python was built or by its distributor: these hold paths of that machine.
_SKIPPED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize", "_sysconfig_vars")
_TOPICS = "pydoc_data/topics.py"


@dataclass(frozen=True)
class PythonDocs:
    """The docstrings of the standard library, a document a file, and the language reference, a document a topic.

    About 2.1 MB of English. Source: `ast.get_docstring` over modules, classes and functions; `pydoc_data.topics`.
    """

    def recipe(self) -> str:
        return "PythonDocs"

    def fingerprint(self) -> str:
        return fingerprint_files(_files() + _topics_file())

    def documents(self, report: Report) -> Iterator[Document]:
        files = _files()
        for done, (key, path) in enumerate(files, 1):
            if text := docstrings(read_bytes(path)):
                yield Document(key, text)
            report("reading the corpus", done, len(files))
        if _topics_file():
            from pydoc_data.topics import topics

            for name, text in sorted(topics.items()):
                yield Document(f"topics/{name}", text)


@dataclass(frozen=True)
class PythonCode:
    """The source code of the standard library, a document a file: about 9 MB with long-range structure."""

    def recipe(self) -> str:
        return "PythonCode"

    def fingerprint(self) -> str:
        return fingerprint_files(_files())

    def documents(self, report: Report) -> Iterator[Document]:
        files = _files()
        for done, (key, path) in enumerate(files, 1):
            if text := _decode(read_bytes(path)):
                yield Document(key, text)
            report("reading the corpus", done, len(files))


def docstrings(source: bytes) -> str:
    """All docstrings of a Python file in the order of the file, a blank line between; "" where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library's own sources
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return ""
    return "\n\n".join(text for node in _definitions(tree) if (text := ast.get_docstring(node)))


def _definitions(node: ast.AST) -> Iterator[ast.AST]:
    """Modules, classes and functions below `node`, depth first; no expression is looked into, none holds any."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield from _definitions(child)


def _files() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        files += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith(_SKIPPED_FILES)]
    if not files:
        raise UserError(
            f"this Python has no sources of its standard library under {str(root)!r}, so that its "
            f"documentation cannot be the corpus; give your own files with data.source=Text(paths=...) "
            f"or the generated Grammar()"
        )
    return sorted((path.relative_to(root).as_posix(), path) for path in files)


def _topics_file() -> list[tuple[str, Path]]:
    path = Path(sysconfig.get_paths()["stdlib"], _TOPICS)
    return [(_TOPICS, path)] if path.is_file() else []


def _decode(source: bytes) -> str:
    """The text in the encoding that the file declares; "" where it does not hold."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        return source.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return ""
