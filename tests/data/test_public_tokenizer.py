"""Tokenizers of public checkpoints: ids as the library gives them, bytes of every token, templates."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers

from jaxeff.core.errors import UserError
from jaxeff.data import Published, Text, TextData
from tests.interop.byte_level import TEMPLATE, TEXT, tokenizer


def folder_with(folder, config=None, generation=None):
    folder.mkdir(exist_ok=True)
    tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>"} | (config or {}))
    )
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return Published(str(folder))


def test_bytes(tmp_path):
    own = folder_with(tmp_path / "a", generation={"eos_token_id": [1, 2]}).load()
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    ids = own.encode(TEXT)
    assert ids == library.encode(TEXT, add_special_tokens=False).ids and own.decode(ids) == TEXT
    assert own.token_bytes[ids].sum() == len(TEXT.encode()) and own.vocab_size == library.get_vocab_size()
    assert (own.bos_id, own.eos_id, own.pad_id, own.ends) == (0, 1, 1, (1, 2))
    assert own.prompt("the cat") == [0, *own.encode("the cat")]


def test_marks_in_a_text_are_letters_and_in_a_prompt_marks(tmp_path):
    own = folder_with(tmp_path / "a").load()
    assert 1 not in own.encode("a</s>") and own.decode(own.encode("a</s>")) == "a</s>"
    assert own.prompt("a</s>")[-1] == 1


def test_texts_that_are_scored_and_generated(tmp_path):
    own = folder_with(tmp_path / "a").load()
    assert own.prompt("<s>a") == own.prompt("a") == own.scored("a") == [0, *own.continued("a")]
    assert own.continued("a</s>") == [*own.encode("a"), 1] and own.prefix_id == 0
    assert own.answer([0, *own.encode(" a é"), 1, own.vocab_size]) == " a é"
    # No token begins a text, whatever the model's config has: what ends one stands before it.
    ended = folder_with(tmp_path / "b", {"bos_token": None})
    (tmp_path / "b" / "config.json").write_text(json.dumps({"bos_token_id": 0}))
    assert (ended.load().bos_id, ended.load().prefix_id) == (0, 1)


def test_pieces_with_byte_fallback(tmp_path):
    """As Llama 2 and Gemma have it."""
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    vocabulary |= {"\u2581": 259, "a": 260, "\u2581a": 261}
    own = tokenizers.Tokenizer(
        models.BPE(vocabulary, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    own.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    own.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    own.add_special_tokens(["<s>", "</s>"])
    folder = tmp_path / "a"
    folder.mkdir()
    own.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1]}))
    found = Published(str(folder)).load()
    ids = found.encode("a é")
    assert (
        found.decode(ids) == found.answer(ids) == " a é"
        and found.pieces[261] == b" a"
        and found.pieces[0xC3 + 3] == b"\xc3"
    )
    assert (found.bos_id, found.ends) == (0, (1,)) and found.token_bytes[0] == 0


def test_sentencepiece(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT.strip()] * 20),
        model_writer=model,
        vocab_size=280,
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    found = Published(str(tmp_path)).load()
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert found.encode("the cat") == library.encode("the cat") and found.decode(found.encode("the cat")) == " the cat"
    assert (
        found.prompt("the cat") == [library.bos_id(), *library.encode("the cat")] and found.eos_id == library.eos_id()
    )


def test_templates(tmp_path):
    own = folder_with(tmp_path / "a", {"chat_template": TEMPLATE}).load()
    messages = [{"role": "user", "content": "the cat"}]
    assert own.rendered(messages) == "<|user|>the cat</s><|assistant|>"
    assert own.chat(messages) == [2, *own.encode("the cat"), 1, 3]
    with pytest.raises(UserError, match="the chat template refuses this conversation: no tool"):
        own.chat([{"role": "tool", "content": "x"}])
    several = [
        {"name": "tool_use", "template": "x"},
        {"name": "default", "template": "{{ messages[0].content | tojson }}"},
    ]
    assert folder_with(tmp_path / "b", {"chat_template": several}).load().rendered(messages) == '"the cat"'
    (tmp_path / "b" / "chat_template.jinja").write_text("{{ bos_token }}")
    assert Published(str(tmp_path / "b")).load().rendered(messages) == "<s>"
    # A template is data: it reaches nothing but what it is given.
    for bad, said in (("{{ ''.__class__.__mro__ }}{{ x.y.z }}", "refuses"), ("{% if %}", "cannot be read")):
        with pytest.raises(UserError, match=said):
            folder_with(tmp_path / "c", {"chat_template": bad}).load().rendered(messages)
    with pytest.raises(UserError, match="no chat template"):
        folder_with(tmp_path / "d").load().rendered(messages)


def test_folders_without(tmp_path):
    with pytest.raises(UserError, match="neither tokenizer.json nor tokenizer.model"):
        Published(str(tmp_path)).load()
    own = folder_with(tmp_path / "a", {"eos_token": None})
    with pytest.raises(UserError, match="no token ends a text"):
        own.load()
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json cannot be read"):
        own.load()
    (tmp_path / "a" / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json cannot be read"):
        own.load()


def test_text_by_it(tmp_path):
    published = folder_with(tmp_path / "a")
    (tmp_path / "book.txt").write_text("\n\n".join(f"{TEXT} {i}" for i in range(60)))
    data = TextData(
        source=Text(str(tmp_path / "book.txt"), piece_chars=200), tokenizer=published, seq_len=32, batch_size=2
    )
    prepared = data.prepare(cache=tmp_path / "cache")
    assert (
        prepared.vocab_size == published.load().vocab_size
        and prepared.statistics["tokenizer"] == published.load().identity
    )
    batch = prepared.first()
    assert batch["tokens"].max() < prepared.vocab_size and np.any(batch["tokens"] == 1)
