"""What is to be seen to before XLA starts: flags that it does not know, and a compiler error that would make gradients wrong.

XLA ends the process at a flag in XLA_FLAGS that it does not know. Its library holds the names of those it knows.

On CPU, jaxlib 0.10.2 to 0.11 hands sums to a library (YNNPACK) in a form in which some come out wrong: the gradient of an RMS
norm under `vmap` is off by the size of the gradient itself. The flag below keeps sums with XLA, which is right and as fast.
XLA reads its flags once, when the first backend starts, so this must happen at `import jaxeff`, before anything is computed.
"""

import importlib.util
import mmap
import os
import re
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from jaxeff.core.errors import UserError, nearest

AFFECTED = ((0, 10, 2), (0, 12, 0))  # from the first version, up to the second, which is right
NAME = "--xla_cpu_experimental_ynn_fusion_type"
FLAG = f"{NAME}=-reduce"
ADVICE = f"set XLA_FLAGS='{FLAG}' before Python starts, or import jaxeff before anything is computed"


def keep_sums_right(version: str, environment: MutableMapping[str, str], started: bool) -> str | None:
    """Appends FLAG to XLA_FLAGS in `environment` where jaxlib `version` needs it. Returns a warning, or None if all is well.

    started: whether a backend exists already, whose flags are fixed. A value that the user gave for this flag is left alone.
    """
    if not AFFECTED[0] <= _numbers(version) < AFFECTED[1]:
        return None
    flags = environment.get("XLA_FLAGS", "")
    given = [flag.partition("=")[2] for flag in flags.split() if flag.partition("=")[0] == NAME]
    problem = f"jaxlib {version} computes some sums wrongly on CPU, gradients of norms among them"
    if given:
        sums = {"reduce", "+reduce"} & set(given[-1].strip("'\"").split(","))
        return f"{problem}, and XLA_FLAGS asks for it ({NAME}={given[-1]}): remove that flag" if sums else None
    if started:
        return f"{problem}, and JAX had started before jaxeff could prevent it: {ADVICE}"
    environment["XLA_FLAGS"] = f"{flags} {FLAG}".strip()
    return None


def check_flags(flags: str) -> None:
    """Raises UserError for a flag of XLA_FLAGS, as they stand there, that XLA does not know; a file of flags is not looked at."""
    names = re.findall(r"(?:^|\s)--?([^\s=]+)", flags.replace('"', " ").replace("'", " "))
    for library in _library() if names else ():
        unknown = next((name for name in names if library.find(name.encode()) < 0), None)
        if unknown is not None:
            known = {name.decode() for name in re.findall(rb"xla_[a-z0-9_]{3,80}(?=\0)", library)}
            raise UserError(f"XLA_FLAGS has a flag that XLA does not know, --{unknown}; {nearest(unknown, known)}")


def _library() -> Iterator[mmap.mmap]:
    """XLA's own, in memory; nothing where it is not where we look for it."""
    spec = importlib.util.find_spec("jaxlib")
    path = Path(spec.origin).parent / "libjax_common.so" if spec is not None and spec.origin else None
    if path is not None and path.exists():
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            yield library


def _numbers(version: str) -> tuple[int, ...]:
    parts = (part for part in version.split(".")[:3])
    return tuple(int(part) if part.isdecimal() else 0 for part in parts)


def _started() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bool(getattr(bridge, "_backends", None))


def prepare() -> None:
    """What `import jaxeff` does; warns once when it comes too late or is overridden."""
    from jaxlib.version import __version__ as version

    warning = keep_sums_right(version, os.environ, _started())
    if warning is not None:
        warnings.warn(warning, RuntimeWarning, stacklevel=3)
