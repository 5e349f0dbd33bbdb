"""Sources: which documents they give, and what they say about bad input."""

import gzip
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxeff.core.errors import UserError
from jaxeff.data import PythonCode, PythonDocs, Text, text
from jaxeff.data.cache import silent
from jaxeff.data.python_sources import docstrings
from jaxeff.data.text_files import cut


def documents(source) -> dict[str, str]:
    found = list(source.documents(silent))
    assert len({document.key for document in found}) == len(found)
    return {document.key: document.text for document in found}


def jsonl(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_docstrings_in_the_order_of_the_file():
    source = (
        b'"""Module."""\nclass A:\n    """A."""\n    def f(self):\n        """f.\n\n        More."""\nif 1:\n'
        b'    async def g():\n        "g."\n'
    )
    assert docstrings(source) == "Module.\n\nA.\n\nf.\n\nMore.\n\ng."
    assert docstrings(b"def broken(:") == ""


def test_the_default_corpus_is_megabytes_of_this_pythons_own_documentation():
    found = documents(PythonDocs())
    assert "JSON" in found["json/__init__.py"]
    assert 1_500_000 < sum(len(text.encode()) for text in found.values()) < 4_000_000
    assert any(key.startswith("topics/") for key in found)
    assert not any("test" in key.split("/") or "site-packages" in key for key in found)


def test_python_code_is_the_files_themselves():
    code = PythonCode()
    found = next(document for document in code.documents(silent) if document.key == "bisect.py")
    assert found.text.startswith('"""Bisection algorithms."""')
    assert code.fingerprint() == code.fingerprint() != PythonDocs().fingerprint()


def test_python_without_sources_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UserError, match="no sources of its standard library.*Grammar"):
        PythonDocs().fingerprint()


def test_files_folders_gzip_and_json_lines(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("one\n")
    (folder / "deep" / "b.txt.gz").write_bytes(gzip.compress("zwei\r\n é".encode()))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b'{"body": "three"}\n\n{"body": "four"}\n'))
    (folder / "ignored.bin").write_bytes(b"\xff")
    (folder / ".hidden.txt").write_text("no")
    lone = tmp_path / "README"
    lone.write_text("\ufefffive")
    assert documents(text([folder, lone], field="body")) == {
        "corpus/a.txt": "one\n",
        "corpus/deep/b.txt.gz": "zwei\r\n é",
        "corpus/c.jsonl.gz:1": "three",
        "corpus/c.jsonl.gz:3": "four",
        "README": "five",
    }


def test_fingerprint_follows_content_and_names_not_the_place(tmp_path):
    def corpus(place: str, content: str) -> Text:
        (tmp_path / place / "x").mkdir(parents=True)
        (tmp_path / place / "x" / "a.txt").write_text(content)
        return text(tmp_path / place / "x")

    here, there, other = corpus("here", "same"), corpus("there", "same"), corpus("other", "different")
    assert here.fingerprint() == there.fingerprint() != other.fingerprint()
    assert set(documents(text(here.paths + there.paths))) == {"x/a.txt", "x/a.txt~2"}
    assert set(documents(text([tmp_path / "here", here.paths[0]]))) == {"x/a.txt"}


def test_a_few_files_are_cut_and_many_are_not(tmp_path):
    for i in range(19):
        (tmp_path / f"{i:02d}.txt").write_text("line\n\n" * 4000)
    assert len(documents(text(tmp_path))) == 19 * 2
    assert len(documents(Text((str(tmp_path),), piece_chars=0))) == 19
    (tmp_path / "19.txt").write_text("line\n\n" * 4000)
    assert len(documents(text(tmp_path))) == 20


@given(st.text("ab \n", max_size=200), st.integers(0, 30))
def test_pieces_join_to_the_text(content, size):
    pieces = cut(content, size)
    assert "".join(pieces) == content
    assert all(pieces) and (not size or all(len(piece) <= size for piece in pieces))


def test_pieces_end_at_blank_lines_then_lines_then_words():
    assert cut("a\n\nb c\n\nd", 7) == ["a\n\n", "b c\n\nd"]
    assert cut("one two\nthree", 9) == ["one two\n", "three"]
    assert cut("one two", 5) == ["one ", "two"]
    assert cut("abcdef", 4) == ["abcd", "ef"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"txt": "x"}, r"f\.jsonl:1: no field 'text'; did you mean 'txt'"),
        ("{broken", r"f\.jsonl:1: not JSON"),
        ("[1]", r"f\.jsonl:1: expected a JSON object.*list"),
        ({"text": 3}, r"f\.jsonl:1: the field 'text' must hold text, not int"),
        ('{"text": "\\ud800"}', r"f\.jsonl:1: .*surrogate"),
    ],
)
def test_bad_json_lines_are_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        documents(text(jsonl(tmp_path / "f.jsonl", content), field="text"))


def test_the_line_of_the_error_counts_blank_lines(tmp_path):
    with pytest.raises(UserError, match=r"f\.jsonl:3: not JSON"):
        documents(text(jsonl(tmp_path / "f.jsonl", {"text": "x"}, "", "nonsense"), field="text"))


def test_a_field_is_for_json_lines_and_they_need_one(tmp_path):
    with pytest.raises(UserError, match=r"f\.jsonl:1: say which field.*body"):
        documents(text(jsonl(tmp_path / "f.jsonl", {"body": "x"})))
    (tmp_path / "f.txt").write_text("x")
    with pytest.raises(UserError, match="field='body' is for .jsonl"):
        documents(text(tmp_path / "f.txt", field="body"))


def test_bytes_that_are_not_utf8_are_named_with_their_offset(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("café".encode("latin1"))
    with pytest.raises(UserError, match=r"latin\.txt.* not UTF-8: byte 0xe9 at offset 3"):
        documents(text(path))


def test_damaged_gzip_is_named(tmp_path):
    path = tmp_path / "f.txt.gz"
    path.write_bytes(gzip.compress(b"x" * 1000)[:-12])
    with pytest.raises(UserError, match=r"cannot decompress .*f\.txt\.gz"):
        documents(text(path))


def test_missing_and_empty_places_are_named(tmp_path):
    (tmp_path / "book.txt").write_text("x")
    with pytest.raises(UserError, match=r"no file or folder .*bok\.txt'; did you mean 'book\.txt'"):
        text(tmp_path / "bok.txt").fingerprint()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no file that ends in \.txt"):
        text(tmp_path / "empty").fingerprint()
    with pytest.raises(UserError, match="no paths"):
        text(()).fingerprint()


def test_sources_are_hashable_settings():
    assert hash(text(["a", "b"], "f")) == hash(Text(("a", "b"), "f"))
    assert text("a") == Text(("a",)) and "json" in sys.modules
