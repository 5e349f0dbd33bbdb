"""The user's own text: `.txt` and `.jsonl` files, either of them gzipped, alone or in folders."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jaxeff.core.errors import UserError, nearest
from jaxeff.data.cache import Report
from jaxeff.data.documents import Document, fingerprint_files, read_bytes

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
FEW_FILES = 20
PIECE_CHARS, LEAST_CHARS = 16384, 512
ENOUGH_DOCUMENTS = 100


@dataclass(frozen=True)
class Text:
    """Files and folders of text in UTF-8.

    Args:
      paths: files or folders (searched through for `.txt`, `.jsonl` and either with `.gz`; hidden ones are left out).
        A file that is named itself is plain text unless it ends in `.jsonl` or `.jsonl.gz`.
      field: the field of each JSON line that holds its text. A line is a document.
      piece_chars: a plain file is cut at blank lines into documents of about this many characters; 0 leaves it whole.
        None cuts into pieces of 16384 only where there are fewer than 20 files, because a split by documents needs
        some number of them.
    """

    paths: tuple[str, ...]
    field: str | None = None
    piece_chars: int | None = None

    def __post_init__(self):
        paths = (self.paths,) if isinstance(self.paths, (str, os.PathLike)) else self.paths
        object.__setattr__(self, "paths", tuple(os.fspath(path) for path in paths))
        if self.piece_chars is not None and self.piece_chars < 0:
            raise UserError(f"piece_chars must be at least 0, not {self.piece_chars}")

    def recipe(self) -> list:
        return ["Text", self.field, self.piece_chars]

    def finer(self) -> "Text":
        """With `piece_chars` so small that a short text makes about a hundred documents as well, of at least 512 characters; itself
        where it is long or its `piece_chars` are given. Raises UserError where a path is not there."""
        files = self._files()
        n_bytes = sum(path.stat().st_size for _, path in files if not _is_json(path))
        size = 1 << (n_bytes // ENOUGH_DOCUMENTS).bit_length() >> 1
        if self.piece_chars is not None or len(files) >= FEW_FILES or not 0 < n_bytes or size >= PIECE_CHARS:
            return self
        return replace(self, piece_chars=max(size, LEAST_CHARS))

    def n_bytes(self) -> int:
        """Of all files, as they are on disk. Raises UserError where a path is not there."""
        return sum(path.stat().st_size for _, path in self._files())

    def fingerprint(self) -> str:
        return fingerprint_files(self._files())

    def documents(self, report: Report) -> Iterator[Document]:
        files = self._files()
        if self.field is not None and not any(_is_json(path) for _, path in files):
            raise UserError(f"field={self.field!r} is for .jsonl files, of which there are none in {self.paths}")
        size = self.piece_chars
        if size is None:
            size = PIECE_CHARS if len(files) < FEW_FILES else 0
        for done, (key, path) in enumerate(files, 1):
            yield from _json_lines(key, path, self.field) if _is_json(path) else _plain(key, path, size)
            report("reading the corpus", done, len(files))

    def _files(self) -> list[tuple[str, Path]]:
        """(key, path), sorted by a key that does not depend on where the folder lies."""
        if not self.paths:
            raise UserError("no paths of text files were given")
        found = {}
        for given in map(Path, self.paths):
            path = given.expanduser()
            if not path.exists():
                raise UserError(f"there is no file or folder {str(given)!r}{_neighbours(path)}")
            inside = _walk(path) if path.is_dir() else [path]
            if not inside:
                raise UserError(f"the folder {str(given)!r} holds no file that ends in {', '.join(SUFFIXES)}")
            found |= {file.resolve(): file.relative_to(path.parent).as_posix() for file in inside}
        keys: dict[str, int] = {}
        files = []
        for path, key in sorted(found.items(), key=lambda item: (item[1], item[0])):
            keys[key] = keys.get(key, 0) + 1  # folders of the same name in different places
            files.append((key if keys[key] == 1 else f"{key}~{keys[key]}", path))
        return files


def cut(text: str, size: int) -> list[str]:
    """`text` in pieces of at most `size` characters that end after a blank line, or else a line, where they can.

    Joined they are `text` again. Size 0 does not cut.
    """
    pieces, start = [], 0
    while size and len(text) - start > size:
        end = -1
        for mark in ("\n\n", "\n", " "):
            at = text.rfind(mark, start, start + size)
            if at >= 0:
                end = at + len(mark)
                break
        end = end if end > start else start + size
        pieces.append(text[start:end])
        start = end
    return pieces + [text[start:]] if text[start:] else pieces


def _plain(key: str, path: Path, size: int) -> Iterator[Document]:
    pieces = cut(_decode(_read(path), path), size)
    for i, piece in enumerate(pieces):
        yield Document(key if len(pieces) == 1 else f"{key}[{i}]", piece)


def _json_lines(key: str, path: Path, field: str | None) -> Iterator[Document]:
    content = _read(path)
    _decode(content, path)
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield Document(f"{key}:{number}", _field(line.decode("utf-8-sig"), f"{path}:{number}", field))


def _field(line: str, where: str, field: str | None) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object with a field of text, found {type(value).__name__}")
    if field is None:
        raise UserError(
            f"{where}: say which field of the JSON lines holds the text, field=...; {nearest('text', value)}"
        )
    if field not in value:
        raise UserError(f"{where}: no field {field!r}; {nearest(field, value)}")
    text = value[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: the field {field!r} must hold text, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: the field {field!r} holds half a surrogate pair, which is no text") from error
    return text


def _read(path: Path) -> bytes:
    content = read_bytes(path)
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot decompress {str(path)!r}: {error}") from error


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{str(path)!r} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}; "
            f"convert it first, for instance with `iconv -f latin1 -t utf-8`"
        ) from error


def _is_json(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def _walk(root: Path) -> list[Path]:
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(folder, name) for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
    return files


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = nearest(path.name, (entry.name for entry in path.parent.iterdir()))
    return f"; {near}" if near.startswith("did you mean") else ""
