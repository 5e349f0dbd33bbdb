"""The published sizes of recurrent models: the parameters that Transformers counts in the model of their `config.json`, and
flash-linear-attention in RWKV-7."""

import pytest

from jaxeff.core.spec import count
from jaxeff.models.presets import PRESETS

PUBLISHED = {
    "mamba-130m": 129135360,
    "mamba-370m": 371516416,
    "mamba-790m": 793204224,
    "mamba-1.4b": 1372178432,
    "mamba-2.8b": 2768345600,
    "mamba2-130m": 128989632,
    "mamba2-370m": 368346624,
    "mamba2-780m": 780161280,
    "mamba2-1.3b": 1343757312,
    "mamba2-2.7b": 2702599680,
    "falcon-mamba-7b": 7272665088,
    "rwkv-4-169m-pile": 169342464,
    "rwkv-4-430m-pile": 430397440,
    "rwkv-4-1b5-pile": 1515106304,
    "rwkv-4-3b-pile": 2984627200,
    "rwkv7-0.1b": 191034624,
    "rwkv7-0.4b": 450767872,
    "rwkv7-1.5b": 1527404544,
    "rwkv7-2.9b": 2947735040,
    "recurrentgemma-2b": 2682862080,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name):
    assert count(PRESETS[name]().specs()) == PUBLISHED[name]
