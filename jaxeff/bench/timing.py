"""Clocks for comparing: the candidates take turns, so that a busy minute hits all of them alike."""

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median

import jax

MATMUL = 1024  # the size of the matrix product that stands for a machine's peak
PAUSE = 0.05  # seconds between turns: idle worker threads of the one before stop spinning


def seconds(thunk: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, until its arrays are ready."""
    start = time.perf_counter()
    jax.block_until_ready(thunk())
    return time.perf_counter() - start


def alternate(
    clocks: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 1, pause: float = PAUSE
) -> dict[str, list[float]]:
    """Calls every clock once a round, in turn, and returns what each reported after the warm-up rounds.

    Args:
        clocks: name -> function that runs its candidate once and returns the seconds it took (`seconds` makes one).
        rounds: turns that count; `warmup` turns before them compile and fill caches.
    """
    times: dict[str, list[float]] = {name: [] for name in clocks}
    for i in range(warmup + rounds):
        for name, clock in clocks.items():
            if pause:
                gc.collect()
                time.sleep(pause)
            taken = clock()
            if i >= warmup:
                times[name].append(taken)
    return times


def summary(times: Mapping[str, list[float]]) -> dict[str, tuple[float, float]]:
    """name -> (median, minimum)."""
    return {name: (median(values), min(values)) for name, values in times.items()}


def matmul_clock(dtype: str = "float32", n: int = MATMUL, repeats: int = 4) -> Callable[[], float]:
    """A clock of an [n, n] x [n, n] matrix product, 2 n^3 FLOPs, on the default device: the least of `repeats`."""
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return lambda: min(seconds(lambda: product(x, x)) for _ in range(repeats))
