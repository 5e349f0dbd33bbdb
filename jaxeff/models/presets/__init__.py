"""Published small models as functions that make them: `PRESETS["smollm2-135m"]()` is an LM. One file for each family."""

from collections.abc import Callable

from jaxeff.models.lm import LM
from jaxeff.models.presets import (
    falcon_mamba,
    gemma,
    gpt2,
    gpt_neox,
    llama,
    mamba,
    mamba2,
    olmo2,
    phi,
    qwen,
    recurrent_gemma,
    rwkv,
    rwkv7,
    stablelm,
)

PRESETS: dict[str, Callable[[], LM]] = {
    **llama.PRESETS,
    **qwen.PRESETS,
    **gemma.PRESETS,
    **phi.PRESETS,
    **stablelm.PRESETS,
    **olmo2.PRESETS,
    **gpt2.PRESETS,
    **gpt_neox.PRESETS,
    **mamba.PRESETS,
    **mamba2.PRESETS,
    **falcon_mamba.PRESETS,
    **rwkv.PRESETS,
    **rwkv7.PRESETS,
    **recurrent_gemma.PRESETS,
}
