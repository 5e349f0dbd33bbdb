"""Settings that must hold before JAX starts: CPU, four virtual devices, no silent promotion of dtypes or ranks."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402

import jaxeff  # noqa: E402, F401  the flags that it adds must be there before a backend starts

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs here run for milliseconds and compile for seconds: the same programs, compiled quickly.
jax.config.update("jax_disable_most_optimizations", True)

from hypothesis import settings  # noqa: E402

# The same examples in every run, and no verdict on time: compilation makes the first example slow.
settings.register_profile("jaxeff", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("jaxeff")
