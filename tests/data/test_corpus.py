"""The data set on disk: split by hash, every document once, read back as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxeff.core.errors import UserError
from jaxeff.data import Grammar, text
from jaxeff.data.cache import silent
from jaxeff.data.corpus import limit, prepare_corpus, split
from jaxeff.data.documents import Document

DOCUMENTS = list(Grammar(300, n_sentences=2).documents(silent))


def where(splits: dict[str, list[Document]]) -> dict[str, str]:
    return {document.key: name for name, documents in splits.items() for document in documents}


def test_shares_are_about_those_asked_for():
    splits = split([Document(f"{i}", f"text {i}") for i in range(4000)], 0.1, 0.2)
    sizes = {name: len(documents) for name, documents in splits.items()}
    assert sum(sizes.values()) == 4000
    assert 340 < sizes["validation"] < 460 and 720 < sizes["test"] < 880


@given(st.permutations(range(60)), st.integers(1, 60))
def test_neither_order_nor_name_nor_other_documents_move_one(order, n):
    all_of_them = {d.text: name for name, part in split(DOCUMENTS[:60], 0.2, 0.2).items() for d in part}
    some = [Document(f"renamed/{i}", DOCUMENTS[i].text) for i in order][: n + 20]
    for name, part in split(some, 0.2, 0.2).items():
        assert all(all_of_them[document.text] == name for document in part)


def test_equal_documents_are_on_the_same_side():
    copies = [Document(f"copy{i}/{d.key}", d.text) for d in DOCUMENTS for i in range(2)]
    found = where(split(copies, 0.2, 0.2))
    assert all(found[f"copy0/{d.key}"] == found[f"copy1/{d.key}"] for d in DOCUMENTS)


@given(st.integers(3, 12), st.integers(0, 280))
def test_no_split_stays_empty(n, start):
    splits = split(DOCUMENTS[start : start + n], 0.01, 0.01)
    assert set(splits) == {"train", "validation", "test"} and all(splits.values())
    assert sum(map(len, splits.values())) == n


def test_splits_that_are_not_wanted_are_not_there():
    assert set(split(DOCUMENTS, 0.0, 0.1)) == {"train", "test"}
    assert set(split(DOCUMENTS[:1], 0.0, 0.0)) == {"train"}


def test_fewer_documents_than_splits_is_an_error():
    with pytest.raises(UserError, match=r"2 document\(s\) cannot fill 3 splits .*piece_chars"):
        split(DOCUMENTS[:2], 0.1, 0.1)


def test_a_larger_budget_adds_to_a_smaller_one():
    small, large = ({d.key for d in limit(DOCUMENTS, n, "Grammar")} for n in (2000, 6000))
    assert small < large
    assert sum(len(d.text.encode()) for d in limit(DOCUMENTS, 2000, "Grammar")) <= 2000
    assert limit(DOCUMENTS, None, "Grammar") == DOCUMENTS
    with pytest.raises(UserError, match="max_bytes=1 is less than the first document"):
        limit(DOCUMENTS, 1, "Grammar")


def test_what_is_written_is_read_back_every_document_once(tmp_path, capsys):
    stages = []
    corpus = prepare_corpus(
        Grammar(40), tmp_path, valid_fraction=0.1, test_fraction=0.1, report=lambda *stage: stages.append(stage)
    )
    assert corpus.splits == ("train", "validation", "test")
    read = {name: list(corpus.texts(name)) for name in corpus.splits}
    assert sorted(sum(read.values(), [])) == sorted(d.text for d in Grammar(40).documents(silent))
    assert {name: len(texts) for name, texts in read.items()} == corpus.statistics["documents"]
    assert {name: len("".join(texts).encode()) for name, texts in read.items()} == corpus.statistics["bytes"]
    assert ("reading the corpus", 40, 40) in stages and ("writing the corpus", 40, 40) in stages
    assert capsys.readouterr().out == ""


def test_two_builds_are_equal_byte_for_byte(tmp_path):
    def files(root):
        folder = prepare_corpus(Grammar(20), root).folder
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_changed_text_is_another_corpus(tmp_path):
    path = tmp_path / "a.jsonl"
    fingerprints = set()
    for last in ("x", "y"):
        path.write_text("".join(f'{{"t": "{letter}"}}\n' for letter in "abc" + last))
        corpus = prepare_corpus(text(path, "t"), tmp_path / "cache", valid_fraction=0.3, test_fraction=0.0)
        assert sorted(sum((list(corpus.texts(s)) for s in corpus.splits), [])) == sorted("abc" + last)
        fingerprints.add(corpus.fingerprint)
    assert len(fingerprints) == 2


def test_an_empty_corpus_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="the corpus is empty: Text gave no text"):
        prepare_corpus(text(tmp_path / "a.txt"), tmp_path / "cache")


def test_an_unknown_split_names_the_known_ones(tmp_path):
    corpus = prepare_corpus(Grammar(20), tmp_path)
    with pytest.raises(UserError, match="'valid'.*'validation'"):
        list(corpus.texts("valid"))


def test_a_damaged_data_set_says_what_to_remove(tmp_path):
    corpus = prepare_corpus(Grammar(20), tmp_path)
    next(corpus.folder.rglob("*train.array_record*")).unlink()
    with pytest.raises(UserError, match="is damaged.*remove it"):
        list(corpus.texts("train"))
