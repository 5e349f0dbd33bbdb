"""How programs of the tests are compiled: quickly, or `shipped`, as a user's are."""

import jax

QUICK = "jax_disable_most_optimizations"


def compile_as(shipped: bool) -> None:
    """From now on every program is compiled this way; those of the other way are dropped, as no cache tells them apart."""
    if jax.config.read(QUICK) == shipped:
        jax.config.update(QUICK, not shipped)
        jax.clear_caches()
