"""Every transform by name. A new one is a file beside this one and a line here."""

from jaxeff.transforms.adalora import AdaLoRA
from jaxeff.transforms.adapter import Adapter
from jaxeff.transforms.dora import DoRA
from jaxeff.transforms.ia3 import IA3
from jaxeff.transforms.int4 import Int4
from jaxeff.transforms.int8 import Int8
from jaxeff.transforms.lora import LoRA
from jaxeff.transforms.low_rank import LowRank
from jaxeff.transforms.mask import Mask
from jaxeff.transforms.nf4 import NF4
from jaxeff.transforms.qlora import QLoRA
from jaxeff.transforms.tuning import PrefixTuning, PromptTuning, StateTuning
from jaxeff.transforms.vera import VeRA

TRANSFORMS = {
    "adalora": AdaLoRA,
    "adapter": Adapter,
    "dora": DoRA,
    "ia3": IA3,
    "int4": Int4,
    "int8": Int8,
    "lora": LoRA,
    "low_rank": LowRank,
    "mask": Mask,
    "nf4": NF4,
    "prefix_tuning": PrefixTuning,
    "prompt_tuning": PromptTuning,
    "qlora": QLoRA,
    "state_tuning": StateTuning,
    "vera": VeRA,
}
