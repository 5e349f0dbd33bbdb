"""A cache of folders, each named by a digest of all that it depends on, each published whole or not at all.

A folder is written under a temporary name beside its final one and then renamed, which is atomic within one file
system. Hence no reader ever sees a half-written one, however the writer died, and of two writers at once the loser
throws its copy away.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from jaxeff.core.errors import UserError

Report = Callable[[str, int, int], None]

_TEMPORARY = ".partial-"
_ABANDONED_SECONDS = 24 * 3600
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
    """The folder of everything prepared: `cache`, `$JAXEFF_CACHE`, `$XDG_CACHE_HOME/jaxeff` or `~/.cache/jaxeff`."""
    chosen = cache or os.environ.get("JAXEFF_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxeff"


def digest(*parts) -> str:
    """SHA-256 (hex) of JSON-able parts; equal parts give equal digests on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint(hashes: Iterable[tuple[str, str]]) -> str:
    """SHA-256 (hex) over the sorted (key, hash) pairs of a corpus: the same whatever order they were found in."""
    return digest(*sorted(hashes))


def publish(folder: Path, write: Callable[[Path], None]) -> Path:
    """Makes `folder` with what `write(temporary_folder)` puts there, unless it is there already.

    Raises:
      UserError: the place is read-only or full, or is no folder; the message names it.
    """
    if folder.is_dir():
        return folder
    parent = folder.parent
    temporary = None
    try:
        with _folder_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
            _sweep(parent)
            temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=parent))
            write(temporary)
            _flush(temporary)
            _rename(temporary, folder)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _rename(temporary: Path, folder: Path) -> None:
    # mkdtemp makes folders private to the user; a shared cache needs what the umask allows.
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)
    try:
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise


def _flush(folder: Path) -> None:
    """To the disk before the rename, so that a power cut cannot leave a published folder with empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _sweep(parent: Path) -> None:
    """Removes what killed writers left behind a day ago or earlier; younger ones may still be written to."""
    for path in parent.glob(_TEMPORARY + "*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


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
