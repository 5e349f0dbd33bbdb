"""OLMo 2: norms after the branches, and of q and k over all heads together."""

import functools

from jaxeff.mixers.norm import RMSNorm
from jaxeff.models.presets.transformer import transformer
from jaxeff.ops.rope import Rope

PRESETS = {
    "olmo-2-1b": functools.partial(
        transformer, 100352, 2048, 16, 8192, 16, 16, norm=RMSNorm(1e-6), placement="post", qk_norm=RMSNorm(1e-6),
        qk_norm_over="all", rope=Rope(500000.0), max_positions=4096,
    )
}  # fmt: skip
