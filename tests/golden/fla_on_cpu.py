"""flash-linear-attention's RWKV-7 without triton: import this before `fla`, and its own classes compute on a CPU, their kernels
replaced by the plain torch that fla checks them with. Its other models register themselves in place of Transformers' too, Mamba
among them: a process that imports this has no other families.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import types


class Absent(types.ModuleType):
    """A module of triton: classes and functions that do nothing, and no driver, which is how fla finds that there is no GPU."""

    __path__, __version__ = [], "3.4.0"

    def __getattr__(self, name):
        return Nothing if name[0].isupper() else getattr(Nothing(), name)


class Nothing:
    """Whatever is done with it, it remains what it is."""

    __name__ = "nothing"

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        return self

    def __getattr__(self, name):
        if name.startswith("__") or name == "driver":
            raise AttributeError(name)
        return self


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of triton."""

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "triton":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Absent(spec.name)

    def exec_module(self, module):
        pass


os.environ["TORCHDYNAMO_DISABLE"] = "1"
sys.meta_path.insert(0, Finder())

from fla.layers import rwkv7 as layer  # noqa: E402  (triton is found by the lines above)
from fla.models.rwkv7 import modeling_rwkv7 as model  # noqa: E402
from fla.modules.token_shift import token_shift_ref  # noqa: E402
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence  # noqa: E402
from fla.ops.rwkv7.fused_addcmul import torch_addcmul_rwkv7  # noqa: E402
from fla.ops.rwkv7.fused_k_update import k_update_ref  # noqa: E402
from fla.ops.rwkv7.gate_output_correction import gate_output_correction_ref  # noqa: E402


def token_shift(x, cu_seqlens=None, cache=None, output_cache=False):
    """The shift of whole texts."""
    assert cache is None and output_cache
    return token_shift_ref(x, cu_seqlens), None


def recurrence(r, w, k, v, kk, a, scale, initial_state=None, output_final_state=False, cu_seqlens=None):
    """The recurrence of whole texts, which the reference scales by C^-0.5 whatever `scale`."""
    assert scale == 1.0 and initial_state is None and cu_seqlens is None
    r, w, k, v, kk, a = (x.transpose(1, 2) for x in (r * r.shape[-1] ** 0.5, w, k, v, kk, a))
    o, state = dplr_recurrence(r, k, v, -kk, kk * a, w)
    return o.transpose(1, 2), state


layer.token_shift = model.token_shift = token_shift
layer.fused_addcmul_rwkv7, layer.fused_k_rwkv7 = torch_addcmul_rwkv7, k_update_ref
layer.gate_output_correction, layer.fused_mul_recurrent_rwkv7 = gate_output_correction_ref, recurrence
