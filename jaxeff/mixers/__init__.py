"""Sequence and channel mixers: `from jaxeff.mixers import GQA`."""

from jaxeff.mixers.base import Ctx, Out
from jaxeff.mixers.gqa import GQA, MHA, MQA, SlidingWindow
from jaxeff.mixers.linear_attention import LinearAttention
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.norm import LayerNorm, RMSNorm

__all__ = ["GQA", "MHA", "MLP", "MQA", "Ctx", "LayerNorm", "LinearAttention", "Out", "RMSNorm", "SlidingWindow"]
