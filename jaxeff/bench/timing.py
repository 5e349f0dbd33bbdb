"""The matrix product that stands for a machine's peak."""

from collections.abc import Callable

import jax

from jaxeff.evaluate.timing import seconds

MATMUL = 1024  # its size
READ_BYTES = 2**28  # of the matrix that is read once
PAUSE = 0.05  # seconds between turns: idle worker threads of the one before stop spinning


def matmul_clock(dtype: str = "float32", n: int = MATMUL, repeats: int = 4) -> Callable[[], float]:
    """A clock of an [n, n] x [n, n] matrix product, 2 n^3 FLOPs, on the default device: the least of `repeats`."""
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return lambda: min(seconds(lambda: product(x, x)) for _ in range(repeats))


def read_clock() -> Callable[[], float]:
    """A clock of one vector times a float32 matrix of READ_BYTES bytes, which does little but read it."""
    n = 4096
    w = jax.random.normal(jax.random.key(0), (n, READ_BYTES // 4 // n))
    x = jax.random.normal(jax.random.key(1), (1, n))
    product = jax.jit(lambda x, w: x @ w)
    return lambda: min(seconds(lambda: product(x, w)) for _ in range(2))
