"""Sequence and channel mixers: `from jaxeff.mixers import GQA`."""

from jaxeff.mixers.base import Ctx
from jaxeff.mixers.gqa import GQA, MHA, MQA, SlidingWindow
from jaxeff.mixers.linear_attention import LinearAttention
from jaxeff.mixers.mlp import MLP

__all__ = ["GQA", "MHA", "MLP", "MQA", "Ctx", "LinearAttention", "SlidingWindow"]
