"""Where the numbers came from."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import jax

import jaxeff
from jaxeff.train.workdir import PACKAGES


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
    """Python, jaxeff and the packages whose version may change a number."""
    found = {"python": platform.python_version(), "jaxeff": jaxeff.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
