"""How programs of the tests are compiled: quickly, or `shipped`, as a user's are."""

import jax
from jax._src import compiler

QUICK = "jax_disable_most_optimizations"


def _known(options: dict[str, bool | int]) -> dict[str, bool | int]:
    """Those options, or none where this XLA lacks one."""
    try:
        jax.jit(lambda: 1.0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


# Without its newer emitters of fused loops XLA compiles for a CPU in a third of the time; in one piece, with a quarter less work.
QUICKLY = _known({"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1})
as_shipped = compiler.get_compile_options


def quickly(*args, **kwargs):
    """`get_compile_options` with QUICKLY, which JAX takes for one function at a time only."""
    options = as_shipped(*args, **kwargs)
    options.env_option_overrides = [*options.env_option_overrides, *QUICKLY.items()]
    return options


def compile_as(shipped: bool) -> None:
    """From now on every program is compiled this way; those of the other way are dropped, as no cache tells them apart."""
    if jax.config.read(QUICK) == shipped:
        jax.config.update(QUICK, not shipped)
        compiler.get_compile_options = as_shipped if shipped else quickly
        jax.clear_caches()
