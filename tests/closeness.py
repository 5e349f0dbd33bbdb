"""Closeness of tensors by relative RMS error, one figure per tensor."""

import jax
import numpy as np

from jaxeff.core.tree import join


def relative_rms(actual, expected) -> float:
    """rms(actual - expected) / rms(expected), in float64; the plain rms of `actual` where `expected` is all zero."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {actual.shape}, expected {expected.shape}")
    if not actual.size:
        return 0.0
    error, size = np.sqrt(np.mean((actual - expected) ** 2)), np.sqrt(np.mean(expected**2))
    return float(error / size) if size > 0 else float(error)


def assert_close(actual, expected, rms: float = 1e-5, name: str = ""):
    """Every tensor of the tree `actual` is within relative RMS error `rms` of its partner; NaN and infinity never are.

    Prints each figure (pytest shows them when a test fails, or with -s). The default suits float32: sums of n products
    carry about sqrt(n) * 6e-8, and n is at most some thousands in the tests.
    """
    if jax.tree.structure(actual) != jax.tree.structure(expected):
        raise AssertionError(f"{name}: structure {jax.tree.structure(actual)}, expected {jax.tree.structure(expected)}")
    failures = []
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        label = "/".join(part for part in (name, join(path)) if part) or "tensor"
        error = relative_rms(a, e)
        print(f"{label}: relative rms {error:.2e} (at most {rms:.0e})")
        if not error <= rms:
            failures.append(f"{label}: {error:.3e} > {rms:.0e}")
    assert not failures, "; ".join(failures)
