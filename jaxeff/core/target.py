"""The platform that a program is for. Every choice of an implementation asks here, never the machine it is made on.

By default that is the default backend. A program lowered for another machine is traced anew under `lowering_for`: the target is
part of jit's cache key.
"""

import contextlib
from collections.abc import Iterator

import jax

from jaxeff.core.errors import nearest

PLATFORMS = ("cpu", "gpu", "tpu", "any")  # any: plain forms alone, which run wherever they are put
WINDOWS = "xla_jf_spmd_threshold_for_windowed_einsum_mib"
SCOPED = "xla_tpu_scoped_vmem_limit_kib"
V5E = ("TPU v5 lite", "TPU v5e")
BESIDE = ("xla_enable_async_all_reduce", "xla_tpu_enable_async_collective_fusion_fuse_all_reduce")
_TARGET = jax.make_user_context(default_value=None)


def platform() -> str:
    """ "cpu", "gpu", "tpu" or "any"."""
    return _TARGET.value or jax.default_backend()


def compiler_options(mesh) -> dict[str, str] | None:
    """How programs for the devices of a mesh are compiled, in XLA's names, None for as they come."""
    device = mesh.devices.flat[0]
    return tpu_options(device.device_kind) if device.platform == "tpu" else None


def tpu_options(device_kind: str) -> dict[str, str]:
    """How programs for a kind of TPU, as JAX names it, are compiled.

    A product with a weight that is cut along its inputs (fsdp) would become a product in windows: as many small products as there
    are chips, each smaller than matrix units like. One gather of the weight, begun before it is needed, is quicker. An operation
    may use twice the usual 16 MiB of vector memory: products have tiles that matrix units like also where something elementwise is
    fused with them. On a v5e sums over chips go on beside other work; the compiler does not stand by that on other kinds.
    """
    beside = BESIDE if device_kind in V5E else ()
    return {WINDOWS: "1000000", SCOPED: "32768"} | dict.fromkeys(beside, "true")


def kernel_scope(flops: int, width: int, cycles: int = 0):
    """A context for a call of a kernel, into which no compiler looks: its operations carry in their name how many FLOPs its matrix
    products have, forward, and how wide they are where they are narrowest. cycles: of its schedule, where other units work longer
    than those of products and memory."""
    return jax.named_scope(f"kernel_flops_{flops}_width_{width}" + (f"_cycles_{cycles}" if cycles else ""))


@contextlib.contextmanager
def lowering_for(name: str) -> Iterator[None]:
    """Programs traced inside are for platform `name`. Raises ValueError for an unknown one."""
    if name not in PLATFORMS:
        raise ValueError(f"no platform is called {name!r}; {nearest(name, PLATFORMS)}")
    with _TARGET(name):
        yield
