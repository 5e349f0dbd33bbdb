"""Every transform by name. A new one is a file beside this one and a line here."""

from jaxeff.transforms.int8 import Int8
from jaxeff.transforms.lora import LoRA

TRANSFORMS = {
    "int8": Int8,
    "lora": LoRA,
}
