"""A cache of folders, each named by a digest of all that it depends on, each published whole or not at all.

A folder is written under a temporary name beside its final one and then renamed, which is atomic within one file
system. Hence no reader ever sees a half-written one, however the writer died, and of two writers at once the loser
throws its copy away. It holds checksums of its files, which are compared whenever it is used: a folder that changed since
is made anew.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jaxeff.core.errors import UserError, warn
from jaxeff.core.files import write_json

Report = Callable[[str, int, int], None]

CHECKSUMS = "checksums.json"
_TEMPORARY = ".partial-"
_LOCK = ".lock"  # in a folder being written, held by who writes; in the folder of such folders, while they begin and are swept
_BLOCK_BYTES = 1 << 20
_FOLDER_ERRNOS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOENT,
}
_NEARLY_FULL_BYTES = 4 << 20


def silent(stage: str, done: int, total: int) -> None:
    """The `report` of those who want none."""


def cache_root(cache: str | os.PathLike | None = None) -> Path:
    """The folder of everything prepared: `cache`, `$JAXEFF_CACHE`, `$XDG_CACHE_HOME/jaxeff` or `~/.cache/jaxeff`.

    Raises UserError where there is none, as there is no such home folder.
    """
    chosen = cache or os.environ.get("JAXEFF_CACHE")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxeff"
    except RuntimeError as error:
        raise UserError(f"there is no folder for the cache: {error}; set JAXEFF_CACHE to one") from None


def digest(*parts) -> str:
    """SHA-256 (hex) of JSON-able parts; equal parts give equal digests on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint(hashes: Iterable[tuple[str, str]]) -> str:
    """SHA-256 (hex) over the sorted (key, hash) pairs of a corpus: the same whatever order they were found in."""
    return digest(*sorted(hashes))


def publish(folder: Path, write: Callable[[Path], None]) -> Path:
    """Makes `folder` with what `write(temporary_folder)` puts there, unless it is there already and as it was written.

    Raises:
      UserError: the place is read-only or full, or is no folder; the message names it.
    """
    if folder.is_dir():
        changed = _changed(folder)
        if changed is None:
            return folder
        warn(f"the cached folder {folder} is damaged ({changed}): it is made anew")
    with _folder_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary(folder.parent) as room:
            if folder.is_dir():
                _give_way(folder, room / "damaged")
            new = room / "new"
            new.mkdir()
            write(new)
            write_json(new / CHECKSUMS, checksums(new))
            _flush(new)
            _rename(new, folder)
    return folder


def checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of each file in a folder but of those of the cache itself, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (CHECKSUMS, _LOCK))
    return {path.relative_to(folder).as_posix(): _checksum(path) for path in files}


def _checksum(path: Path) -> int:
    found = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            found = zlib.crc32(block, found)
    return found


def _changed(folder: Path) -> str | None:
    """What is not as it was written, None when all is."""
    try:
        kept, found = json.loads((folder / CHECKSUMS).read_bytes()), checksums(folder)
    except FileNotFoundError:
        return f"no {CHECKSUMS}"
    except (OSError, ValueError) as error:
        return str(error)
    if not isinstance(kept, dict):
        return f"{CHECKSUMS} holds no checksums"
    wrong = [name for name in {**kept, **found} if kept.get(name) != found.get(name)]
    return f"{wrong[0]} has another checksum" if wrong else None


@contextlib.contextmanager
def temporary(parent: Path) -> Iterator[Path]:
    """A folder to write to, removed in the end; those of writers that were killed are removed before."""
    with open(parent / _LOCK, "a") as all_of_them:
        fcntl.flock(all_of_them, fcntl.LOCK_EX)
        for path in parent.glob(_TEMPORARY + "*"):
            if not _held(path):
                shutil.rmtree(path, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=parent))
        mine = open(folder / _LOCK, "a")  # noqa: SIM115
        fcntl.flock(mine, fcntl.LOCK_EX)
    with mine:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _held(folder: Path) -> bool:
    """Whether its writer still lives; the system ends the lock however it dies."""
    with contextlib.suppress(FileNotFoundError), open(folder / _LOCK, "rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _give_way(folder: Path, elsewhere: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.rename(folder, elsewhere)


def _rename(new: Path, folder: Path) -> None:
    try:
        os.rename(new, folder)
    except OSError:
        if not folder.is_dir():
            raise


def _flush(folder: Path) -> None:
    """To the disk before the rename, so that a power cut cannot leave a published folder with empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


@contextlib.contextmanager
def _folder_errors(folder: Path):
    """Says in one line what keeps `folder` from being written to; other errors pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # NumPy reports a short write without an errno, record writers in C++ with an error of their own.
        code = error.errno if isinstance(error, OSError) else None
        if code not in _FOLDER_ERRNOS and not _nearly_full(folder):
            raise
        reason = error.strerror if code in _FOLDER_ERRNOS else "no space left on the disk"
        raise UserError(
            f"cannot write to the cache folder {str(folder)!r}: {reason}; "
            f"make room there or choose another with JAXEFF_CACHE"
        ) from error


def _nearly_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < _NEARLY_FULL_BYTES
    return False


def read_json(path: Path) -> dict:
    """A JSON file of the cache; a `UserError` that says what to remove where it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise damaged(path.parent, error) from error


def damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"the cached folder {str(folder)!r} is damaged ({error}); remove it and run again")
