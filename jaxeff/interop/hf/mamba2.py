"""Mamba-2: `in_proj` is z, x, b, c and dt, one convolution that of x, b and c."""

import math
from typing import Any

from jaxeff.interop.hf import mamba
from jaxeff.interop.hf.family import norm
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.tensors import Tensor
from jaxeff.mixers.mamba2 import Mamba2
from jaxeff.models.lm import LM
from jaxeff.models.presets.mamba2 import mamba2

INNER, STATE = "(h e) d -> d h e", "(g n) d -> d g n"
TAPS = {"mixer/conv_x/w": "(h e) 1 w -> w h e"} | {f"mixer/conv_{name}/w": "(g n) 1 w -> w g n" for name in "bc"}
BLOCK = (
    *norm("norm", "mixer_norm"),
    Tensor(
        "mixer.in_proj.weight",
        {"mixer/z": INNER, "mixer/x": INNER, "mixer/b": STATE, "mixer/c": STATE, "mixer/dt": "h d -> d h"},
    ),
    Tensor("mixer.conv1d.weight", TAPS),
    Tensor(
        "mixer.conv1d.bias",
        {"mixer/conv_x/bias": "(h e) -> h e"} | {f"mixer/conv_{name}/bias": "(g n) -> g n" for name in "bc"},
    ),
    Tensor("mixer.A_log", {"mixer/a_log": "h -> h"}),
    Tensor("mixer.D", {"mixer/skip": "h -> h"}),
    Tensor("mixer.dt_bias", {"mixer/dt_bias": "h -> h"}),
    Tensor("mixer.norm.weight", {"mixer/norm/scale": "(h e) -> h e"}),
    Tensor("mixer.out_proj.weight", {"mixer/o": "d (h e) -> h e d"}),
)
# dt has a rank in Mamba alone; the gate comes before the norm whatever `norm_before_gate` says.
HARMLESS = mamba.HARMLESS | {"chunk_size", "norm_before_gate", "time_step_rank"}
INFINITY = {"__float__": "Infinity"}  # as Transformers 5 writes it


def limit(fields: Fields) -> tuple[float, float] | None:
    """What dt is clipped to, None for nothing. Raises UserError for what is no two numbers."""
    value = fields("time_step_limit", list, None)
    if value is None:
        return None
    ends = tuple(math.inf if end in (INFINITY, "Infinity") else end for end in value)
    if len(ends) != 2 or not all(type(end) in (int, float) for end in ends):
        raise fields.error("time_step_limit", "must be two numbers")
    return None if ends == (0, math.inf) else (float(ends[0]), float(ends[1]))


def _read(fields: Fields) -> LM:
    found = mamba.sizes(fields, False)
    inner, head = found["expand"] * found["d_model"], fields("head_dim", int, 64)
    for name, value in (("num_heads", inner // head), ("intermediate_size", inner)):
        fields.only(name, value)
    fields.only("use_bias", False)  # dt would have two biases
    return mamba2(**found, head_dim=head, n_groups=fields("n_groups", int, 8), dt_limit=limit(fields))


def _write(model: LM) -> dict[str, Any]:
    mixer = mamba.mixer_of(model, Mamba2)
    found = mamba.named_sizes(model, mixer) | {
        "num_heads": mixer.heads,
        "head_dim": mixer.head,
        "n_groups": mixer.n_groups,
    }
    return found | ({} if mixer.dt_limit is None else {"time_step_limit": mixer.dt_limit})


MAMBA2 = mamba.family("mamba2", "Mamba2ForCausalLM", _read, _write, BLOCK, HARMLESS)
