"""Published small models as functions that make them: `PRESETS["smollm2-135m"]()` is an LM. One file for each family."""

from collections.abc import Callable

from jaxeff.models.lm import LM
from jaxeff.models.presets import falcon_mamba, llama, mamba, mamba2, recurrent_gemma, rwkv

PRESETS: dict[str, Callable[[], LM]] = {
    **llama.PRESETS, **mamba.PRESETS, **mamba2.PRESETS, **falcon_mamba.PRESETS, **rwkv.PRESETS, **recurrent_gemma.PRESETS,
}  # fmt: skip
