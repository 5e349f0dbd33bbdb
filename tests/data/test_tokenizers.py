"""Tokenizers: nothing is lost, every byte is counted, training is deterministic and says when it cannot be done."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxeff.core.errors import UserError
from jaxeff.data import Bytes, Grammar, SentencePiece
from jaxeff.data.cache import silent

TEXTS = [document.text + "    indented\n\n\ttabbed é 漢字\n" for document in Grammar(40).documents(silent)]


@pytest.fixture(scope="module", params=["bytes", "bpe", "unigram"])
def tokenizer(request, tmp_path_factory):
    config = Bytes() if request.param == "bytes" else SentencePiece(330, request.param)
    folder = tmp_path_factory.mktemp(request.param)
    config.train(TEXTS, folder)
    return config.load(folder)


@given(
    text=st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])), st.text("the dogs\n\t \u2581\u2585\x00<0x41>/s", max_size=60)
    )
)
@example(text="")
@example(text=" \n  \n\n   leading, trailing   ")
@example(text="\u2581 is no space, \ufeff\u200b\xa0 \r\n \x85 \u2028 are kept, <s> </s> <0x0A> <unk> <pad> are text")
@example(text="e\u0301 \ufb01 \u2460 \U0001f469\u200d\U0001f4bb \U0010ffff")
def test_round_trip_is_exact_and_token_bytes_add_up(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.token_bytes[np.array(ids, int)].sum()) == len(text.encode())
    assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} & set(ids)


def test_many_at_once_is_one_by_one(tokenizer):
    texts = ["", "\n", "the dog\n", " \u2581\n\u2581", *TEXTS[:5]]
    assert [ids.tolist() for ids in tokenizer.encode_many(texts)] == [tokenizer.encode(text) for text in texts]


def test_specials_are_distinct_and_stand_for_no_text(tokenizer):
    specials = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id]
    assert specials == [0, 1, 2]
    assert tokenizer.decode(specials) == "" and not tokenizer.token_bytes[specials].any()
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,) and tokenizer.token_bytes.dtype == np.int32


def test_half_a_character_decodes_to_the_replacement_mark(tokenizer):
    ids = tokenizer.encode("\U0001f469")  # not in the training text, hence bytes
    assert tokenizer.decode(ids[:2]) == "\ufffd"


def test_subwords_are_shorter_than_bytes(tmp_path):
    SentencePiece(600).train(TEXTS, tmp_path)
    text = "the dog sees a cat .\n"
    assert len(SentencePiece(600).load(tmp_path).encode(text)) < len(text) / 2


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_twice_gives_the_same_file(tmp_path, kind):
    models = []
    for name in "ab":
        (tmp_path / name).mkdir()
        SentencePiece(330, kind).train(iter(TEXTS), tmp_path / name)
        models.append((tmp_path / name / "tokenizer.model").read_bytes())
    assert models[0] == models[1]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_limits_of_a_vocabulary_are_told_and_true(tmp_path, kind):
    def train(vocab_size: int):
        SentencePiece(vocab_size, kind).train(["hello world this is\nsmall"], tmp_path)
        return SentencePiece(vocab_size, kind).load(tmp_path).vocab_size

    with pytest.raises(
        UserError, match=rf"{kind} vocabulary of 1024 is larger .* largest possible vocab_size is"
    ) as large:
        train(1024)
    largest = int(str(large.value).split()[-1])
    assert train(largest) == largest
    with pytest.raises(UserError, match="smallest possible vocab_size is") as small:
        train(261)  # the special ones, the newline and all bytes leave no room for letters
    smallest = int(str(small.value).split()[-1])
    assert train(smallest) == smallest


def test_text_without_words_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"use Bytes\(\)"):
        SentencePiece(300).train(["\n\n", ""], tmp_path)


def test_long_lines_are_learnt_from(tmp_path):
    SentencePiece(300).train([" ".join(TEXTS).replace("\n", " ")], tmp_path)
    assert SentencePiece(300).load(tmp_path).vocab_size == 300


def test_only_the_sample_is_looked_at(tmp_path):
    SentencePiece(300, sample_bytes=5000).train(["the dog sees the cats and thanks them " * 200, "z" * 5000], tmp_path)
    assert len(SentencePiece(300, sample_bytes=5000).load(tmp_path).encode("zzzz")) == 4


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(UserError, match="'bp'.*'bpe'"):
        SentencePiece(kind="bp")


def test_a_damaged_model_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="is damaged.*remove it"):
        SentencePiece().load(tmp_path)
