"""The families of public checkpoints by `model_type`. Another one is a file beside this one and a line here."""

from jaxeff.interop.hf import (
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
from jaxeff.interop.hf.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        llama.LLAMA,
        llama.MISTRAL,
        llama.SMOLLM3,
        qwen.QWEN2,
        qwen.QWEN3,
        gemma.GEMMA2,
        gemma.GEMMA3,
        phi.PHI,
        phi.PHI3,
        stablelm.STABLELM,
        olmo2.OLMO2,
        gpt2.GPT2,
        gpt_neox.GPT_NEOX,
        mamba.MAMBA,
        mamba2.MAMBA2,
        falcon_mamba.FALCON_MAMBA,
        rwkv.RWKV,
        rwkv7.RWKV7_FAMILY,
        recurrent_gemma.RECURRENT_GEMMA,
    )
}
