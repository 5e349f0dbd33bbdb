"""The families of public checkpoints by `model_type`. Another one is a file beside this one and a line here."""

from jaxeff.interop.hf import llama, mamba
from jaxeff.interop.hf.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        llama.LLAMA,
        llama.MISTRAL,
        llama.SMOLLM3,
        mamba.MAMBA,
    )
}
