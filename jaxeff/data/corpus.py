"""From a source to a data set on disk: the split, its statistics, and a cache by fingerprint."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.files import write_json
from jaxeff.data.cache import Report, damaged, digest, publish, read_json, silent
from jaxeff.data.documents import Document, Source

SPLITS = ("train", "validation", "test")
_LAYOUT = 1  # of the files in the cache; raise it when they change


@dataclass(frozen=True)
class Corpus:
    """Documents on disk. `statistics`: {"source", "fingerprint", "documents": {split: n}, "bytes": {split: n}}."""

    folder: Path
    fingerprint: str
    statistics: dict

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.statistics["documents"])

    def texts(self, split: str) -> Iterator[str]:
        """The documents of a split, always in the same order."""
        from jaxeff.data import tfds_builder

        lookup(self.statistics["documents"], split, "split of the data")
        try:
            yield from tfds_builder.read(self.folder / self.statistics["records"], split)
        except (OSError, RuntimeError, IndexError, AssertionError) as error:
            raise damaged(self.folder, error) from error


def corpus_fingerprint(source: Source, valid_fraction: float, test_fraction: float, max_bytes: int | None) -> str:
    """Hex digest of what the source holds and how it is split. Reads the source's files, parses none of them."""
    return digest("corpus", _LAYOUT, source.recipe(), source.fingerprint(), valid_fraction, test_fraction, max_bytes)


def prepare_corpus(
    source: Source,
    root: Path,
    *,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.05,
    max_bytes: int | None = None,
    report: Report = silent,
    fingerprint: str | None = None,
) -> Corpus:
    """The corpus of `source` below the folder `root`, written now unless it is there.

    Raises:
      UserError: the source holds no text, or fewer documents than splits; or `root` cannot be written to.
    """
    fingerprint = fingerprint or corpus_fingerprint(source, valid_fraction, test_fraction, max_bytes)

    def write(folder: Path) -> None:
        from jaxeff.data import tfds_builder

        documents = limit([d for d in source.documents(report) if d.text], max_bytes, type(source).__name__)
        splits = split(documents, valid_fraction, test_fraction)
        records = tfds_builder.write(splits, folder, report)
        write_json(
            folder / "statistics.json",
            {
                "source": type(source).__name__,
                "fingerprint": fingerprint,
                "documents": {name: len(part) for name, part in splits.items()},
                "bytes": {name: sum(map(_n_bytes, part)) for name, part in splits.items()},
                "records": records,
            },
        )

    folder = publish(root / "corpora" / fingerprint[:32], write)
    return Corpus(folder, fingerprint, read_json(folder / "statistics.json"))


def split(documents: list[Document], valid_fraction: float, test_fraction: float) -> dict[str, list[Document]]:
    """Documents by split, decided by a hash of the document's own text.

    So neither its place nor its name matters, one more document moves no other one, and two equal documents are never
    on both sides. A split that is wanted and would stay empty gets the document whose hash is the nearest to it.
    """
    ends = {"validation": valid_fraction, "test": valid_fraction + test_fraction, "train": 1.0}
    sizes = {"validation": valid_fraction, "test": test_fraction, "train": 1 - valid_fraction - test_fraction}
    wanted = [name for name in ends if sizes[name] > 0]
    if len(documents) < len(wanted):
        raise UserError(
            f"{len(documents)} document(s) cannot fill {len(wanted)} splits ({', '.join(wanted)}); give "
            f"more text, cut it into smaller documents (Text(piece_chars=...)), or set valid_fraction or "
            f"test_fraction to 0"
        )
    ranked = sorted((_uniform(d.text, 0), d.key, d) for d in documents)
    counts = dict.fromkeys(wanted, 0)
    for u, _, _ in ranked:
        counts[next(name for name in wanted if u < ends[name] or name == wanted[-1])] += 1
    while empty := [name for name in wanted if not counts[name]]:
        counts[max(counts, key=counts.get)] -= 1
        counts[empty[0]] += 1
    parts, start = {}, 0
    for name in wanted:
        parts[name] = [d for _, _, d in ranked[start : start + counts[name]]]
        start += counts[name]
    return {name: parts[name] for name in SPLITS if name in parts}


def limit(documents: list[Document], max_bytes: int | None, source: str) -> list[Document]:
    """As many documents as fit into `max_bytes` (None: all), in the order of a hash, so that more bytes add to fewer."""
    if not documents:
        raise UserError(f"the corpus is empty: {source} gave no text")
    if max_bytes is None:
        return documents
    taken, total = [], 0
    for document in sorted(documents, key=lambda d: (_uniform(d.text, 1), d.key)):
        total += _n_bytes(document)
        if total > max_bytes:
            break
        taken.append(document)
    if not taken:
        raise UserError(f"max_bytes={max_bytes} is less than the first document of {source}, {total} bytes")
    return taken


def _uniform(text: str, word: int) -> float:
    """One of four numbers in [0, 1) that a text hashes to."""
    start = 8 * word
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[start : start + 8], "big") / 2**64


def _n_bytes(document: Document) -> int:
    return len(document.text.encode())
