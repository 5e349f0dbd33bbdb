"""Clocks for comparing: the candidates take turns, so that a slow moment of the machine falls on all alike."""

import gc
import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median

import jax


def seconds(thunk: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, until its arrays are ready."""
    start = time.perf_counter()
    jax.block_until_ready(thunk())
    return time.perf_counter() - start


def alternate(
    clocks: Mapping[Hashable, Callable[[], float]],
    rounds: int,
    warmup: int = 1,
    pause: float = 0.0,
    on_round: Callable[[int], None] = lambda turn: None,
) -> dict[Hashable, list[float]]:
    """Calls every clock once a round, in turn, and returns what each reported after the warm-up rounds.

    clocks: name -> function that runs its candidate once and returns the seconds it took (`seconds` makes one). rounds: turns
    that count; `warmup` turns before them compile and fill caches. pause: idle seconds before each turn. on_round is told the
    number of each round before it starts.
    """
    times: dict[Hashable, list[float]] = {name: [] for name in clocks}
    for turn in range(warmup + rounds):
        on_round(turn)
        for name, clock in clocks.items():
            if pause:
                gc.collect()
                time.sleep(pause)
            taken = clock()
            if turn >= warmup:
                times[name].append(taken)
    return times


def summary(times: Mapping[Hashable, list[float]]) -> dict[Hashable, tuple[float, float]]:
    """name -> (median, minimum)."""
    return {name: (median(values), min(values)) for name, values in times.items()}
