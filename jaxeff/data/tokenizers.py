"""Tokenizers whose round trip is exact: SentencePiece with byte fallback, and plain bytes.

A config (`SentencePiece`, `Bytes`) is a frozen dataclass; what it gives after training is a `Tokenizer`, which holds
the bytes of text that each token stands for. Decoding joins these bytes, and their lengths are what bits per byte are
counted with; there is one table, so that the two cannot disagree.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxeff.core.errors import UserError, lookup
from jaxeff.data.cache import damaged

PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3
KINDS = {"bpe": "bpe", "unigram": "unigram"}
SPACE = "\u2581"  # how SentencePiece writes a space within a piece
_MODEL = "tokenizer.model"
_LINE_CHARS = 1024  # SentencePiece leaves lines of more than 4192 bytes out of its training
_THREADS = 2  # part of the result: the model file names it


class VocabularyMisfit(UserError):
    """The text cannot give a vocabulary of the size that was asked for; `possible` is the nearest that it can."""

    def __init__(self, message: str, possible: int):
        super().__init__(message)
        self.possible = possible


class Tokenizer:
    """Text to ids and back, without loss.

    Attributes:
      vocab_size: number of ids, `pad_id`, `bos_id`, `eos_id` among them.
      ends: the ids at which a text is over.
      pieces: the bytes of text of each id; empty for the special ones.
      identity: hex digest; equal where the ids of every text are.
      token_bytes: int32 [V], their lengths: over `encode(text)` they add up to the length of text in UTF-8.
    """

    pad_id, bos_id, eos_id = PAD, BOS, EOS
    ends: tuple[int, ...] = (EOS,)

    def __init__(self, pieces: list[bytes], identity: str):
        self.pieces, self.identity = pieces, identity
        self.vocab_size = len(pieces)
        self.token_bytes = np.array([len(piece) for piece in pieces], np.int32)

    def save(self, folder: Path) -> None:
        """Writes all that it is into `folder`, to be read as its config reads it."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without begin and end marks."""
        return self.encode_many([text])[0].tolist()

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        """One int32 array of ids per text."""
        raise NotImplementedError

    def prompt(self, text: str) -> list[int]:
        """The ids of a text that begins, to be gone on from."""
        return [self.bos_id, *self.encode(text)]

    @property
    def prefix_id(self) -> int:
        """What stands before a text that is scored from its first token on."""
        return self.bos_id

    def continued(self, text: str) -> list[int]:
        """The ids of a text that goes on from another, special tokens in it understood where a prompt's are."""
        return self.encode(text)

    def scored(self, text: str) -> list[int]:
        """The ids of a text whose every token is scored after `prefix_id`."""
        return self.encode(text)

    def answer(self, ids: Iterable[int]) -> str:
        """The text of `ids` that were generated, as it is compared with what was wanted."""
        return self.decode(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Special ids vanish; bytes that make no UTF-8 become U+FFFD."""
        return b"".join(self.pieces[int(i)] for i in ids).decode("utf-8", errors="replace")


class ByteTokenizer(Tokenizer):
    """Id = byte + 3."""

    def __init__(self):
        super().__init__([b""] * 3 + [bytes([b]) for b in range(256)], "bytes")

    def save(self, folder: Path) -> None:
        """There is nothing to write."""

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3 for text in texts]


class PieceTokenizer(Tokenizer):
    """A trained SentencePiece model. Lines are encoded one by one: the newline is always a token of its own."""

    def __init__(self, model: bytes):
        import sentencepiece

        self._model = model
        self._processor = p = sentencepiece.SentencePieceProcessor(model_proto=model)
        super().__init__([piece_bytes(p, i) for i in range(p.vocab_size())], hashlib.sha256(model).hexdigest())
        ids = {piece: i for i, piece in reversed(list(enumerate(self.pieces)))}
        self._newline = ids[b"\n"]
        # The mark for a space, where the text itself has it, must not come back as a space.
        self._space_mark = [p.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]

    def save(self, folder: Path) -> None:
        (folder / _MODEL).write_bytes(self._model)

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        lines = [part for text in texts for line in text.split("\n") for part in line.split(SPACE)]
        encoded = iter(self._processor.encode(lines, num_threads=_THREADS))
        return [self._join(text, encoded) for text in texts]

    def _join(self, text: str, encoded: Iterator[list[int]]) -> np.ndarray:
        ids: list[int] = []
        for n, line in enumerate(text.split("\n")):
            if n:
                ids.append(self._newline)
            for m in range(line.count(SPACE) + 1):
                if m:
                    ids += self._space_mark
                ids += next(encoded)
        return np.array(ids, np.int32)


def piece_bytes(processor, i: int) -> bytes:
    """What an id of a SentencePiece model stands for."""
    piece = processor.id_to_piece(i)
    if processor.is_byte(i):
        return bytes([int(piece[3:5], 16)])
    special = processor.is_control(i) or processor.is_unknown(i)
    return b"" if special else piece.replace(SPACE, " ").encode()


@dataclass(frozen=True)
class Bytes:
    """A token a byte: 256 and three special ones."""

    def train(self, texts: Iterable[str], folder: Path) -> None:
        """Nothing to learn."""

    def load(self, folder: Path) -> Tokenizer:
        return ByteTokenizer()


@dataclass(frozen=True)
class SentencePiece:
    """Subwords learnt from the training split, with bytes for whatever is not covered.

    Args:
      vocab_size: all ids, the 4 special ones, the newline and 256 bytes among them.
      kind: "bpe" (fast) or "unigram" (ten times slower to train).
      character_coverage: the share of characters that get a piece of their own; the rest is spelled in bytes.
      sample_bytes: how much of the training split is looked at. Its order is a hash, so that this is a fair sample.
    """

    vocab_size: int = 1024
    kind: str = "bpe"
    character_coverage: float = 0.9995
    sample_bytes: int = 50_000_000

    def __post_init__(self):
        lookup(KINDS, self.kind, "kind of SentencePiece model")
        for name, least in (("vocab_size", 4 + 1 + 256), ("sample_bytes", 1)):
            if getattr(self, name) < least:
                raise UserError(f"SentencePiece.{name} must be at least {least}, found {getattr(self, name)}")
        if not 0.98 <= self.character_coverage <= 1:
            raise UserError(f"SentencePiece.character_coverage must lie in 0.98..1, found {self.character_coverage}")

    def train(self, texts: Iterable[str], folder: Path) -> None:
        """Writes a model learnt from `texts` into `folder`; equal texts give equal files.

        Raises:
          VocabularyMisfit: the vocabulary is larger than the text can give, or smaller than it needs.
          UserError: there is no text.
        """
        import io

        import sentencepiece

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(texts, self.sample_bytes),
                model_writer=model,
                vocab_size=self.vocab_size,
                model_type=KINDS[self.kind],
                character_coverage=self.character_coverage,
                byte_fallback=True,
                user_defined_symbols=["\n"],
                pad_id=PAD,
                bos_id=BOS,
                eos_id=EOS,
                unk_id=UNKNOWN,
                # All that would change the text is off.
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                num_threads=_THREADS,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise self._explained(str(error)) from error
        (folder / _MODEL).write_bytes(model.getvalue())

    def load(self, folder: Path) -> Tokenizer:
        try:
            return PieceTokenizer((folder / _MODEL).read_bytes())
        except (OSError, RuntimeError) as error:
            raise damaged(folder, error) from error

    def _explained(self, message: str) -> Exception:
        if found := re.search(r"too high.*<= (\d+)", message):
            return VocabularyMisfit(
                f"a {self.kind} vocabulary of {self.vocab_size} is larger than this corpus can give; the "
                f"largest possible vocab_size is {found[1]}",
                int(found[1]),
            )
        if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
            return VocabularyMisfit(
                f"a {self.kind} vocabulary of {self.vocab_size} is smaller than the characters and bytes "
                f"of this corpus; the smallest possible vocab_size is {found[1]}",
                int(found[1]),
            )
        if "sentences_.empty()" in message:
            return UserError("the training split holds no text that a vocabulary could be learnt from; use Bytes()")
        return RuntimeError(message)


def _lines(texts: Iterable[str], n_bytes: int) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LINE_CHARS):
                piece = line[start : start + _LINE_CHARS]
                n_bytes -= len(piece.encode())
                if n_bytes < 0:
                    return
                yield piece
