"""What a source of text gives: documents, and a digest that tells without parsing whether they are still the same.

A source is a frozen dataclass of settings with three methods:
  recipe() -> JSON-able settings that shape the documents (not where they lie)
  fingerprint() -> sha256 over the sorted (key, hash) of what it reads
  documents(report) -> iterator of `Document`
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jaxeff.core.errors import UserError
from jaxeff.data.cache import Report, fingerprint


@dataclass(frozen=True)
class Document:
    """One text and where it came from. `key` is unique within its source."""

    key: str
    text: str


class Source(Protocol):
    def recipe(self) -> Any: ...

    def fingerprint(self) -> str: ...

    def documents(self, report: Report) -> Iterator[Document]: ...


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, or a `UserError` that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces."""
    sha = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    return sha.hexdigest()


def fingerprint_files(files: list[tuple[str, Path]]) -> str:
    return fingerprint((key, hash_file(path)) for key, path in files)
