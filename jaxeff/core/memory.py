"""How much memory there is, asked before it is taken: a process that takes more than there is is killed without a word."""

from collections.abc import Mapping

import jax

from jaxeff.core.errors import UserError


def check_fits(needs: Mapping[str, int], what: str, advice: str, available: int | None = None) -> None:
    """Raises UserError, naming what is largest, where a device cannot hold `needs`, bytes by name.

    what: needs them; advice: what to do then. available: bytes, None: what is free on the first device.
    """
    available = free_bytes(jax.local_devices()[0]) if available is None else available
    total = sum(needs.values())
    if available is not None and total > available:
        largest = ", ".join(f"{name} {_gib(needs[name])}" for name in sorted(needs, key=needs.get, reverse=True)[:3])
        raise UserError(
            f"{what} needs {_gib(total)} of memory on a device at the very least, and {_gib(available)} are free"
            f" ({largest}); {advice}"
        )


def free_bytes(device) -> int | None:
    """What a device has left, None where it does not tell. On a CPU: what the system could still give, shared by its virtual
    devices."""
    if device.platform != "cpu":
        stats: Mapping[str, int] = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if {"bytes_limit", "bytes_in_use"} <= stats.keys() else None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        free = 1024 * sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    except (OSError, KeyError, ValueError):
        return None
    limit = _container()
    return (free if limit is None else min(free, limit)) // jax.local_device_count("cpu")


def _container() -> int | None:
    """What a container may still take, None outside of one."""
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = int(file.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            return max(limit - int(file.read()), 0)
    except (OSError, ValueError):
        return None


def _gib(n: int) -> str:
    return f"{n / 2**30:,.1f} GiB"
