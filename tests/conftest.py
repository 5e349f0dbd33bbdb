"""Settings that must hold before JAX starts: CPU, four virtual devices, no silent promotion of dtypes or ranks.

Programs of most tests run for milliseconds and compile for seconds, so they are compiled quickly. Tests with the marker
`shipped` run last, on programs that are optimised as a user's are; those with the marker `either` do so where pytest is called
with --shipped.
"""

import gc
import itertools
import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import pytest  # noqa: E402

import jaxeff  # noqa: E402, F401  the flags that it adds must be there before a backend starts
from tests.shipped import compile_as  # noqa: E402
from tests.thorough import thorough  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
compile_as(shipped=False)
# A program that one worker has compiled, or an earlier run, is read by the others.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

from hypothesis import settings  # noqa: E402

# The same examples in every run, and no verdict on time: compilation makes the first example slow.
settings.register_profile("jaxeff", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("jaxeff")
if "JAXEFF_FUZZ" in os.environ:  # so many examples, others in every run: make fuzz
    settings.register_profile("fuzz", deadline=None, print_blob=True, max_examples=int(os.environ["JAXEFF_FUZZ"]))
    settings.load_profile("fuzz")

COUNTER = itertools.count()  # of tests in this process


def pytest_addoption(parser):
    parser.addoption(
        "--shipped", action="store_true", help="the tests marked `either`, on programs optimised as a user's are"
    )
    parser.addoption("--quick", action="store_true", help="without what tests/thorough.py names: make test")
    parser.addoption("--thorough", action="store_true", help="only what tests/thorough.py names: make thorough")


def is_shipped(item) -> bool:
    return bool(
        item.get_closest_marker("shipped") or (item.config.option.shipped and item.get_closest_marker("either"))
    )


def pytest_collection_modifyitems(config, items):
    """Shipped tests last, so that a worker changes its way of compiling once; with --shipped no others."""
    if config.option.shipped:
        select(items, lambda item: item.get_closest_marker("either"))
    if config.option.quick != config.option.thorough:
        left = thorough(items)
        select(items, lambda item: (item in left) == config.option.thorough)
    items.sort(key=is_shipped)


def select(items, wanted):
    """Deselects all other tests."""
    others = [item for item in items if not wanted(item)]
    if others:
        others[0].config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if wanted(item)]


# A hook and no fixture: fixtures of a module or session are made before any of a function, and they compile too.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    compile_as(is_shipped(item))
    if next(COUNTER) % 20 == 0:
        forget_programs()


def forget_programs(limit: int = 25_000) -> None:
    """Drops compiled programs before there are too many: each holds maps of memory, of which a process has 65,530 on Linux, and the
    compiler crashes where it gets none."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > limit:
        jax.clear_caches()
        gc.collect()
