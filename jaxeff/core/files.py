"""Files that are written whole or not at all, and the file system's refusals as errors that a person can act on."""

import contextlib
import errno
import json
import os
from pathlib import Path

from jaxeff.core.errors import UserError

# What the operating system's refusals look like when they arrive inside another library's message.
REFUSALS = {
    errno.ENOSPC: ("no space left on device", "resource_exhausted: disk", "enospc"),
    errno.EDQUOT: ("disk quota exceeded",),
    errno.EROFS: ("read-only file system", "erofs"),
    errno.EACCES: ("permission denied", "eacces"),
}
# Further ones that only count as errors of the system itself: a path that cannot be a folder.
PATHS = (errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP)


def write_json(path: str | os.PathLike, value) -> None:
    """Writes `value` as indented JSON; raises as `write_text` does, and what `json` raises for a value that is none."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a file, in folders made if need be: a reader, or who comes after a kill, sees the old text or the new one.

    Raises UserError where the file system refuses.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def refusals(place):
    """Turns the file system's refusals (full, read-only, not permitted), in whatever wrapping, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = refusal(error)
        if found is None:
            raise
        raise UserError(f"cannot write to {place}: {found}") from error


def refusal(error: BaseException | None) -> str | None:
    """What the file system said no to, or None when the error is of another kind."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (*REFUSALS, *PATHS):
            return error.strerror.lower()
        text = str(error).lower()
        for signs in REFUSALS.values():
            if any(sign in text for sign in signs):
                return signs[0]
        error = error.__cause__ or error.__context__
    return None
