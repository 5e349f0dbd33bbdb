"""Rewritings of parameter trees: a transform is a frozen dataclass that plans on Specs and then lifts and merges values.

plan = chain(Int8(rules=("blocks/.*",)), LoRA(rules=(("blocks/.*/mixer/(q|v)", 8),))).plan(model.specs())
params = plan.lift(params, key)       # the same model with other weights: model.apply(params, ...)
params = plan.merge(params)           # plain arrays again
"""

from jaxeff.transforms.adalora import AdaLoRA
from jaxeff.transforms.adapter import Adapter
from jaxeff.transforms.distance import distances
from jaxeff.transforms.dora import DoRA
from jaxeff.transforms.ia3 import IA3
from jaxeff.transforms.int4 import Int4
from jaxeff.transforms.int8 import Int8
from jaxeff.transforms.lora import LoRA
from jaxeff.transforms.low_rank import LowRank
from jaxeff.transforms.mask import Mask
from jaxeff.transforms.nf4 import NF4
from jaxeff.transforms.plan import Plan, Transform, chain, specs_of
from jaxeff.transforms.qlora import QLoRA
from jaxeff.transforms.registry import TRANSFORMS
from jaxeff.transforms.tuning import PrefixTuning, PromptTuning, StateTuning
from jaxeff.transforms.vera import VeRA

__all__ = [
    "IA3",
    "NF4",
    "TRANSFORMS",
    "AdaLoRA",
    "Adapter",
    "DoRA",
    "Int4",
    "Int8",
    "LoRA",
    "LowRank",
    "Mask",
    "Plan",
    "PrefixTuning",
    "PromptTuning",
    "QLoRA",
    "StateTuning",
    "Transform",
    "VeRA",
    "chain",
    "distances",
    "specs_of",
]
