"""Configurations of public models, case -> (model_type, fields), and the numbers that their weights are given."""

import re
from zlib import crc32

import numpy as np

from tests.golden import hf_attention, hf_recurrent

CASES = {**hf_attention.CASES, **hf_recurrent.CASES}
# Those that flash-linear-attention computes, and not Transformers by itself.
FLA = {case: found for case, found in CASES.items() if found[0] == "rwkv7"}

# name -> (mean, deviation); else, vectors are small, matrices keep the size of what they multiply.
DRAWN = {r".*norm[^/]*\.weight": (1.0, 0.2), r".*ln_[^/]*\.weight": (1.0, 0.2), **hf_recurrent.DRAWN}


def drawn(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The float32 numbers of a tensor, a function of its name, shape and a seed."""
    normal = np.random.default_rng(crc32(f"{seed} {name}".encode())).standard_normal(shape)
    for pattern, (mean, std) in DRAWN.items():
        if re.fullmatch(pattern, name):
            return (mean + std * normal).astype(np.float32)
    return (normal * (0.1 if len(shape) == 1 else shape[-1] ** -0.5)).astype(np.float32)
