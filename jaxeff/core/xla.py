"""A compiler error that would make gradients wrong, and how it is kept away.

On CPU, jaxlib 0.10.2 to 0.11 hands sums to a library (YNNPACK) in a form in which some come out wrong: the gradient of an RMS
norm under `vmap` is off by the size of the gradient itself. The flag below keeps sums with XLA, which is right and as fast.
XLA reads its flags once, when the first backend starts, so this must happen at `import jaxeff`, before anything is computed.
"""

import os
import sys
import warnings
from collections.abc import MutableMapping

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
