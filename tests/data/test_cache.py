"""Folders of the cache appear whole or not at all."""

import errno
import os
import threading
from pathlib import Path

import pytest

from jaxeff.core.errors import UserError
from jaxeff.data import cache
from jaxeff.data.cache import CHECKSUMS, cache_root, fingerprint, publish, read_json


def put(content: str):
    return lambda folder: (folder / "x").write_text(content)


def folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir())


def test_the_second_call_writes_nothing(tmp_path):
    folder = publish(tmp_path / "root" / "a", put("first"))
    publish(folder, lambda _: pytest.fail("written again"))
    assert (folder / "x").read_text() == "first"
    assert folders(tmp_path / "root") == ["a"]


def test_what_fails_half_way_leaves_nothing(tmp_path):
    def fail(folder: Path):
        (folder / "half").write_text("...")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "a", fail)
    assert folders(tmp_path) == []


def test_of_two_writers_one_wins_and_both_go_on(tmp_path):
    together = threading.Barrier(4)

    def write(folder: Path):
        together.wait(10)
        (folder / "x").write_text(folder.name)

    threads = [threading.Thread(target=publish, args=(tmp_path / "a", write)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders(tmp_path) == ["a"] and sorted(os.listdir(tmp_path / "a")) == [CHECKSUMS, "x"]


def test_what_killed_writers_left_is_swept_and_what_others_write_is_not(tmp_path):
    left = tmp_path / ".partial-left"
    left.mkdir()
    (left / ".lock").write_text("")
    (tmp_path / ".partial-empty").mkdir()

    def write(folder: Path):
        publish(tmp_path / "b", put("second"))
        (folder / "x").write_text("first")

    publish(tmp_path / "a", write)
    assert folders(tmp_path) == ["a", "b"] and (tmp_path / "a" / "x").read_text() == "first"


@pytest.mark.parametrize("name", ["x", CHECKSUMS])
def test_a_folder_that_changed_is_made_anew_and_said(tmp_path, capsys, name):
    folder = publish(tmp_path / "a", put("first"))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    publish(folder, put("second"))
    assert (folder / "x").read_text() == "second" and folders(tmp_path) == ["a"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{folder} is damaged" in said and "made anew" in said
    publish(folder, put("third"))
    assert (folder / "x").read_text() == "second" and capsys.readouterr().err == ""


@pytest.mark.parametrize("change", [lambda f: (f / "x").unlink(), lambda f: (f / "y").write_text("")])
def test_a_file_less_or_more_is_a_change(tmp_path, capsys, change):
    folder = publish(tmp_path / "a", put("first"))
    change(folder)
    publish(folder, put("second"))
    assert (folder / "x").read_text() == "second" and "has another checksum" in capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, code):
    def fail(folder: Path):
        raise OSError(code, os.strerror(code))

    with pytest.raises(UserError, match=f"cache folder '{tmp_path}': {os.strerror(code)}.*JAXEFF_CACHE"):
        publish(tmp_path / "a", fail)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache folder .*file"):
        publish(tmp_path / "file" / "rows" / "a", put(""))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        publish(tmp_path / "a", put(""))


def test_a_full_disk_is_recognised_behind_other_errors(tmp_path, monkeypatch):
    def fail(folder: Path):
        raise RuntimeError("record writer failed")

    with pytest.raises(RuntimeError):
        publish(tmp_path / "a", fail)
    monkeypatch.setattr(cache, "_nearly_full", lambda folder: True)
    with pytest.raises(UserError, match="no space left"):
        publish(tmp_path / "a", fail)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXEFF_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == Path.home() / ".cache" / "jaxeff"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/jaxeff")
    monkeypatch.setenv("JAXEFF_CACHE", "/mine")
    assert cache_root() == Path("/mine")
    assert cache_root(tmp_path) == tmp_path


def test_a_damaged_file_says_what_to_remove(tmp_path):
    (tmp_path / "statistics.json").write_text('{"half')
    with pytest.raises(UserError, match=f"'{tmp_path}' is damaged.*remove it"):
        read_json(tmp_path / "statistics.json")


def test_fingerprints_do_not_depend_on_the_order():
    assert fingerprint([("a", "1"), ("b", "2")]) == fingerprint([("b", "2"), ("a", "1")])
    assert fingerprint([("a", "1"), ("b", "2")]) != fingerprint([("a", "2"), ("b", "1")])
