"""Rewritings of parameter trees: a transform is a frozen dataclass that plans on Specs and then lifts and merges values.

plan = chain(Int8(rules=("blocks/.*",)), LoRA(rules=(("blocks/.*/mixer/(q|v)", 8),))).plan(model.specs())
params = plan.lift(params, key)       # the same model with other weights: model.apply(params, ...)
params = plan.merge(params)           # plain arrays again
"""

from jaxeff.transforms.int8 import Int8
from jaxeff.transforms.lora import LoRA
from jaxeff.transforms.plan import Plan, Transform, chain, specs_of
from jaxeff.transforms.registry import TRANSFORMS

__all__ = ["TRANSFORMS", "Int8", "LoRA", "Plan", "Transform", "chain", "specs_of"]
