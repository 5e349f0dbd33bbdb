"""Public checkpoints, as Hugging Face's hub has them, in and out: `config.json` and safetensors. Needs `jaxeff[hf]`; neither torch
nor transformers.

    model, params = load("SmolLM2-135M")                 # a folder
    save("mine", model, params, like="SmolLM2-135M")     # what transformers loads
"""

from jaxeff.interop.hf.load import load, read_config
from jaxeff.interop.hf.registry import FAMILIES
from jaxeff.interop.hf.save import canonical, difference, save

__all__ = ["FAMILIES", "canonical", "difference", "load", "read_config", "save"]
