"""Sequence and channel mixers: `from jaxeff.mixers import GQA`."""

from jaxeff.mixers.base import Ctx, Out
from jaxeff.mixers.deltanet import DeltaNet
from jaxeff.mixers.gated_deltanet import GatedDeltaNet
from jaxeff.mixers.gated_deltaproduct import GatedDeltaProduct
from jaxeff.mixers.gla import GLA
from jaxeff.mixers.gqa import GQA, MHA, MQA, SlidingWindow
from jaxeff.mixers.kda import KDA
from jaxeff.mixers.linear_attention import LinearAttention
from jaxeff.mixers.mamba import Mamba
from jaxeff.mixers.mamba2 import Mamba2
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.moe import MoE
from jaxeff.mixers.norm import LayerNorm, RMSNorm
from jaxeff.mixers.retnet import RetNet
from jaxeff.mixers.rglru import RGLRU
from jaxeff.mixers.rwkv4 import RWKV4, RWKV4Channel
from jaxeff.mixers.rwkv6 import RWKV6, RWKV6Channel
from jaxeff.mixers.rwkv7 import RWKV7, RWKV7Channel
from jaxeff.mixers.short_conv import ShortConv

__all__ = [
    "Ctx",
    "DeltaNet",
    "GLA",
    "GQA",
    "GatedDeltaNet",
    "GatedDeltaProduct",
    "KDA",
    "LayerNorm",
    "LinearAttention",
    "MHA",
    "MLP",
    "MQA",
    "Mamba",
    "Mamba2",
    "MoE",
    "Out",
    "RGLRU",
    "RMSNorm",
    "RWKV4",
    "RWKV4Channel",
    "RWKV6",
    "RWKV6Channel",
    "RWKV7",
    "RWKV7Channel",
    "RetNet",
    "ShortConv",
    "SlidingWindow",
]
