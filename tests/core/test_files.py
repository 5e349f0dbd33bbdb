"""Files appear whole or not at all, and what the file system refuses is said in one line."""

import errno
import json
import os

import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.files import refusal, refusals, write_json, write_text


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"rows": [1.5, "é"]})
    assert json.loads(path.read_text()) == {"rows": [1.5, "é"]} and path.read_text().endswith("}\n")
    assert os.listdir(path.parent) == ["a.json"]


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            UserError,
            "cannot write to .*a.txt: no space left on device",
        ),
        (OSError(errno.EINVAL, "Invalid argument"), OSError, "Invalid"),
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    ],
)
def test_writing_is_all_or_nothing(tmp_path, monkeypatch, step, error, kind, words):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*_):
        raise error

    with monkeypatch.context() as context:
        context.setattr(step, fail)
        with pytest.raises(kind, match=words):
            write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=f"^cannot write to {path}: "):
            write_text(path, "text")


def test_refusals_are_found_in_any_wrapping_and_other_errors_pass():
    with pytest.raises(UserError, match="^cannot write to here: disk quota exceeded$"), refusals("here"):
        raise RuntimeError("failed") from ValueError("UNKNOWN: Disk quota exceeded [122]")
    with pytest.raises(UserError, match="^mine$"), refusals("here"):
        raise UserError("mine")
    with pytest.raises(ValueError, match="^a bug$"), refusals("here"):
        raise ValueError("a bug")
    assert refusal(FileNotFoundError(errno.ENOENT, "No such file")) is None and refusal(None) is None
