"""The tokenizer of a public checkpoint: `tokenizer.json`, or a SentencePiece `tokenizer.model`, with its special tokens and chat
template. Needs `jaxeff[hf]`; nothing in its folder is run, templates are rendered in a sandbox.

Its ids are those of the published model. What they decode to is not always the text to the letter: some fold Unicode, some put a
space before the first word, and bits per byte count that space as a byte.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.data.tokenizers import SPACE, Tokenizer, piece_bytes

WHOLE, PIECES = "tokenizer.json", "tokenizer.model"
SOURCES = (WHOLE, PIECES)
FILES = (
    *SOURCES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "generation_config.json", "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """As `TextData.tokenizer`: that of a public checkpoint in `folder`."""

    folder: str

    def load(self) -> "PublishedTokenizer":
        """Raises UserError where the folder has no tokenizer, or one that cannot be read."""
        return read(Path(self.folder))


class PublishedTokenizer(Tokenizer):
    """What `read` gives.

    folder: of its files. template: of chats, None where there is none. ends: the ids that a model was published to stop at.
    """

    def __init__(
        self,
        folder: Path,
        pieces: list[bytes],
        identity: str,
        coding,
        config: Mapping[str, Any],
        template: str | None,
        **ids,
    ):
        super().__init__(pieces, identity)
        self.folder = folder
        self._encode, self._decode = coding
        self._config, self.template = config, template
        self.eos_id, self.bos_id, self.pad_id, self.ends = ids["eos"], ids["bos"], ids["pad"], ids["ends"]

    def save(self, folder: Path) -> None:
        """Copies its files, and the model's config, which names the tokens that end a text."""
        for name in (*FILES, "config.json"):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        """Special tokens that are spelled out in a text are letters like others."""
        return [np.asarray(ids, np.int32) for ids in self._encode(texts, marks=False, begin=False)]

    def prompt(self, text: str) -> list[int]:
        """The ids of a text as the model was trained to see one begin, special tokens in it understood; one that spells out how it
        begins does so once."""
        mark = _content(self._config.get("bos_token"))
        return list(self._encode([text], marks=True, begin=not mark or not text.startswith(mark))[0])

    @property
    def prefix_id(self) -> int:
        """`eos_id` where the tokenizer says that no token begins a text, whatever the model's config has."""
        return self.eos_id if self._config.get("bos_token", "") is None else self.bos_id

    def continued(self, text: str) -> list[int]:
        return list(self._encode([text], marks=True, begin=False)[0])

    def scored(self, text: str) -> list[int]:
        """With the mark that begins a text, where there is one: published perplexities count it."""
        return self.prompt(text)

    def answer(self, ids: Iterable[int]) -> str:
        """As the library writes it: some drop a space before the first word."""
        return self._decode([int(i) for i in ids if i < self.vocab_size])

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation, [{"role": "user", "content": ...}, ...], up to where the answer begins.

        Raises UserError where the tokenizer has no chat template, or the template refuses the conversation.
        """
        return list(self._encode([self.rendered(messages)], marks=True, begin=False)[0])

    def rendered(self, messages: Sequence[Mapping[str, str]], begin_answer: bool = True) -> str:
        """A conversation as text, up to where the answer begins; begin_answer False: up to the end of the last message, which the
        answer goes on from.

        Raises UserError as `chat` does.
        """
        if self.template is None:
            raise UserError(
                "this tokenizer has no chat template: the model was not trained to chat; see jaxeff generate"
            )
        import jinja2

        marks = {name: _content(value) for name, value in self._config.items() if name.endswith("_token")}
        try:
            text = _compiled(self.template).render(messages=messages, add_generation_prompt=begin_answer, **marks)
        except (jinja2.TemplateError, _RefusedError) as error:
            raise UserError(f"the chat template refuses this conversation: {error}") from None
        return text if begin_answer else _unfinished(text, messages[-1]["content"])


def read(folder: Path) -> PublishedTokenizer:
    """The tokenizer of a folder. Raises UserError where there is none, or it cannot be read."""
    config = _json(folder / "tokenizer_config.json") | {
        name: value for name, value in _json(folder / "special_tokens_map.json").items() if value is not None
    }
    template = _template(folder, config)
    if (folder / WHOLE).is_file():
        pieces, coding, ids = _library(folder / WHOLE)
    elif (folder / PIECES).is_file():
        pieces, coding, ids = _sentencepiece(folder / PIECES, config)
    else:
        raise UserError(f"{folder} has no tokenizer: neither {WHOLE} nor {PIECES}")
    source = folder / (WHOLE if (folder / WHOLE).is_file() else PIECES)
    identity = hashlib.sha256(source.read_bytes()).hexdigest()
    return PublishedTokenizer(folder, pieces, identity, coding, config, template, **_special(folder, config, ids))


def _special(folder: Path, config: Mapping[str, Any], ids) -> dict[str, Any]:
    """The ids of special tokens: `eos`, `bos` and `pad`, which are `eos` where there is none, and `ends`."""
    model, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")

    def listed(fields: Mapping[str, Any], name: str) -> list[int]:
        found = fields.get(f"{name}_token_id")
        return found if isinstance(found, list) else [] if found is None else [found]

    def first(name: str) -> int | None:
        token = _content(config.get(f"{name}_token"))
        found = None if token is None else ids(token)
        return found if found is not None else next(iter(listed(model, name)), None)

    eos = first("eos")
    if eos is None:
        raise UserError(
            f"{folder}: no token ends a text: tokenizer_config.json has no eos_token, config.json no eos_token_id"
        )
    others = {name: eos if first(name) is None else first(name) for name in ("bos", "pad")}
    return {"eos": eos, **others, "ends": tuple(dict.fromkeys((eos, *listed(generation, "eos"))))}


def _library(path: Path):
    """(bytes of each id, (encode, decode), token -> id) of a `tokenizer.json`."""
    import tokenizers

    try:
        own = tokenizers.Tokenizer.from_file(str(path))
        described = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001  the library raises bare Exceptions
        raise UserError(f"{path} cannot be read: {error}") from None
    own.no_padding()
    own.no_truncation()
    added = own.get_added_tokens_decoder()
    vocabulary = own.get_vocab(with_added_tokens=True)
    as_bytes = _bytes_of(described, path)
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for token, i in vocabulary.items():
        pieces[i] = as_bytes(token) if i not in added else b"" if added[i].special else token.encode()

    def encode(texts: list[str], marks: bool, begin: bool) -> list[list[int]]:
        own.encode_special_tokens = not marks
        return [found.ids for found in own.encode_batch(texts, add_special_tokens=begin)]

    return pieces, (encode, own.decode), own.token_to_id


def _bytes_of(described: Mapping[str, Any], path: Path):
    """token -> the bytes of text it stands for, by the kind of decoder."""
    decoder = json.dumps(described.get("decoder"))
    if '"ByteLevel"' in decoder:
        table = _letters()
        return lambda token: bytes(table[letter] for letter in token) if set(token) <= table.keys() else token.encode()
    if any(f'"{kind}"' in decoder for kind in ("ByteFallback", "Metaspace", "Replace")):
        return _piece
    kind = (described.get("decoder") or {}).get("type")
    raise UserError(f"{path}: decoder {kind!r} is not understood; known: ByteLevel, ByteFallback, Metaspace, Replace")


def _piece(token: str) -> bytes:
    """Of a SentencePiece vocabulary."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


@functools.cache
def _letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies: itself where it is printable, else one from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _sentencepiece(path: Path, config: Mapping[str, Any]):
    """(bytes of each id, (encode, decode), token -> id) of a SentencePiece model."""
    import sentencepiece

    try:
        own = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    begins = [own.bos_id()] if config.get("add_bos_token", True) and own.bos_id() >= 0 else []

    def encode(texts: list[str], marks: bool, begin: bool) -> list[list[int]]:
        return [[*(begins if begin else ()), *ids] for ids in own.encode(texts)]

    return [piece_bytes(own, i) for i in range(own.vocab_size())], (encode, own.decode), own.piece_to_id


def _unfinished(text: str, last: str) -> str:
    """A conversation up to the end of its last message, without what the template puts after it."""
    for message in (last.lstrip(), last.strip()):
        if message in text:
            return text[: text.rindex(message) + len(message)]
    raise UserError("the chat template changes the last message, which can therefore not be gone on from")


class _RefusedError(Exception):
    """A template's own objection."""


@functools.cache
def _compiled(template: str):
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str):
        raise _RefusedError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template cannot be read: {error}") from None


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Of several, the one that is called default."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found}.get("default")
    return found


def _content(token: Any) -> str | None:
    """A special token, written as text or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
