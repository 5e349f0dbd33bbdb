"""Falcon-Mamba: Mamba with norms of dt, b and c that have no weights."""

from typing import Any

from jaxeff.interop.hf import mamba
from jaxeff.interop.hf.fields import Fields
from jaxeff.mixers.mamba import Mamba
from jaxeff.models.lm import LM


def _read(fields: Fields) -> LM:
    return mamba.read(fields, bcdt_eps=fields("mixer_rms_eps", float, 1e-6))


def _write(model: LM) -> dict[str, Any]:
    return mamba.write(model) | {"mixer_rms_eps": mamba.mixer_of(model, Mamba).bcdt_eps}


FALCON_MAMBA = mamba.family("falcon_mamba", "FalconMambaForCausalLM", _read, _write)
