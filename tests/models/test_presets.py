"""Published models by name: as many parameters as their checkpoints have."""

import pytest

from jaxeff.core.spec import count
from jaxeff.models import Stage
from jaxeff.models.block import as_block
from jaxeff.models.presets import PRESETS
from jaxeff.models.stack import stages

# Those of the safetensors on the hub.
COUNTS = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "mobilellama-1.4b": 1_364_297_728,
    "mobilellama-2.7b": 2_701_560_320,
    "smollm-135m": 134_515_008,
    "smollm-360m": 361_821_120,
    "smollm-1.7b": 1_711_376_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "eurollm-1.7b": 1_656_850_432,
    "salamandra-2b": 2_253_490_176,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "stablelm-2-1.6b": 1_644_515_328,
    "olmo-2-1b": 1_484_916_736,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "pythia-14m": 14_067_712,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(name):
    assert count(PRESETS[name]().specs()) == COUNTS[name]


def test_stages_are_the_fewest_blocks():
    a, b, c = map(as_block, ("gqa", "mamba2", "gla"))
    assert stages([a] * 5) == (Stage((a,), 5),)
    assert stages([a, a, b] * 3) == (Stage((a, a, b), 3),)
    assert stages([a, b, b, b, c]) == (Stage((a,)), Stage((b,), 3), Stage((c,)))
    assert stages([a, a, a, b] * 2 + [a, a]) == (Stage((a, a, a, b), 2), Stage((a,), 2))
    with pytest.raises(ValueError, match="no block"):
        stages([])
