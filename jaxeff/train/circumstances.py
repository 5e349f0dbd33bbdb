"""Where and with what numbers are made: machine, versions, state of the repository."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import jaxeff

PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "sentencepiece",
)


def circumstances(step: int, mesh) -> dict[str, Any]:
    """Where and with what a run starts, or goes on, at `step`."""
    device = mesh.devices.flat[0]
    return {
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "host": platform.node(),
        "platform": platform.platform(),
        "device": f"{mesh.size} x {device.device_kind} ({device.platform})",
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "python": platform.python_version(),
        "jaxeff": jaxeff.__version__,
        "packages": packages(),
        "git": git(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def machine() -> dict[str, str]:
    """Device, processor and system."""
    device = jax.devices()[0]
    kind = (
        f"{jax.device_count()} x {device.device_kind}" if device.platform != "cpu" else f"cpu, {os.cpu_count()} cores"
    )
    return {"device": kind, "processor": processor(), "system": f"{platform.system()} {platform.machine()}"}


def processor() -> str:
    """The processor's name where the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def versions() -> dict[str, str]:
    """Python, jaxeff and those of PACKAGES that are installed."""
    installed = {name: version for name, version in packages().items() if version is not None}
    return {"python": platform.python_version(), "jaxeff": jaxeff.__version__} | installed


def packages() -> dict[str, str | None]:
    """The versions of PACKAGES, which may change a number; None for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git(folder: Path = Path(jaxeff.__file__).parent) -> dict[str, Any] | None:
    """{"commit", "changed": files that differ from it} of the repository around `folder`; None where there is none."""

    def ask(*args):
        return subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True
        ).stdout

    try:
        return {"commit": ask("rev-parse", "HEAD").strip(), "changed": ask("status", "--porcelain", ".").splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None
