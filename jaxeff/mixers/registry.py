"""Every mixer by name. A new one is a file beside this one and a line here."""

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
from jaxeff.mixers.retnet import RetNet
from jaxeff.mixers.rglru import RGLRU
from jaxeff.mixers.rwkv4 import RWKV4, RWKV4Channel
from jaxeff.mixers.rwkv6 import RWKV6, RWKV6Channel
from jaxeff.mixers.rwkv7 import RWKV7, RWKV7Channel

MIXERS = {
    "gqa": GQA,
    "mha": MHA,
    "mqa": MQA,
    "window": SlidingWindow,
    "linear": LinearAttention,
    "deltanet": DeltaNet,
    "gated_deltanet": GatedDeltaNet,
    "gated_deltaproduct": GatedDeltaProduct,
    "gla": GLA,
    "kda": KDA,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "retnet": RetNet,
    "rglru": RGLRU,
    "rwkv4": RWKV4,
    "rwkv6": RWKV6,
    "rwkv7": RWKV7,
}

CHANNEL_MIXERS = {
    "mlp": MLP,
    "moe": MoE,
    "rwkv4_channel": RWKV4Channel,
    "rwkv6_channel": RWKV6Channel,
    "rwkv7_channel": RWKV7Channel,
}
