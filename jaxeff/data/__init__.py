"""Text to batches: a source, split by hash, tokenized, packed, and served from an exact position.

    data = TextData(source=text("book.txt"), seq_len=512)
    prepared = data.prepare()
    batch = next(prepared.train())

Importing this costs numpy only; TFDS, Grain and SentencePiece are imported where they are used.
"""

from jaxeff.data.base import Data, Prepared
from jaxeff.data.grammar import Grammar
from jaxeff.data.public_tokenizer import Published
from jaxeff.data.python_sources import PythonCode, PythonDocs
from jaxeff.data.synthetic import Copy, Recall, StateTracking
from jaxeff.data.text import TextData
from jaxeff.data.text_files import Text
from jaxeff.data.tokenizers import Bytes, SentencePiece

__all__ = [
    "Copy",
    "Bytes",
    "Data",
    "Grammar",
    "Prepared",
    "Published",
    "PythonCode",
    "PythonDocs",
    "Recall",
    "SentencePiece",
    "StateTracking",
    "Text",
    "TextData",
    "text",
]


def text(paths, field: str | None = None) -> Text:
    """The user's own files as a source: a path or several, `.txt` or `.jsonl` with the `field` of the text."""
    return Text(paths, field)
