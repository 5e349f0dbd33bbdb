"""The matrix product that stands for a machine's peak."""

from collections.abc import Callable

import jax

from jaxeff.evaluate.timing import seconds

MATMUL = 1024  # its size
PAUSE = 0.05  # seconds between turns: idle worker threads of the one before stop spinning


def matmul_clock(dtype: str = "float32", n: int = MATMUL, repeats: int = 4) -> Callable[[], float]:
    """A clock of an [n, n] x [n, n] matrix product, 2 n^3 FLOPs, on the default device: the least of `repeats`."""
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return lambda: min(seconds(lambda: product(x, x)) for _ in range(repeats))
