"""Published small models as functions that make them: `PRESETS["smollm2-135m"]()` is an LM. One file for each family."""

from collections.abc import Callable

from jaxeff.models.lm import LM
from jaxeff.models.presets import llama

PRESETS: dict[str, Callable[[], LM]] = {**llama.PRESETS}
