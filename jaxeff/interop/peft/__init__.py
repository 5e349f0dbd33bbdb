"""Adapters of Hugging Face's PEFT around public models, in and out: `adapter_config.json` and safetensors. Needs `jaxeff[hf]`;
neither torch nor peft.

    model, params = hf.load("SmolLM2-135M")
    transforms, params = load("my-adapter", model, params)     # what peft's save_pretrained wrote
    save("mine", model, transforms, params, "SmolLM2-135M")    # what peft.PeftModel.from_pretrained loads
"""

from jaxeff.interop.peft.load import load
from jaxeff.interop.peft.save import save

__all__ = ["load", "save"]
