"""A small public checkpoint: a Llama and the tokenizer of byte_level.py."""

import jax

from jaxeff.core.spec import init
from jaxeff.interop import hf
from jaxeff.mixers import GQA, MLP
from jaxeff.mixers.norm import RMSNorm
from jaxeff.models import LM, Block, Stage
from tests.interop.byte_level import special, tokenizer


def checkpoint(folder):
    """Writes the whole folder; returns the model and its parameters."""
    block = Block(GQA(n_heads=4, n_kv_heads=2), MLP(d_hidden=48), RMSNorm(1e-5))
    model = LM(304, 32, (Stage((block,), 2),), norm=RMSNorm(1e-5), max_positions=256)
    params = init(model.specs(), jax.random.key(0))
    params["embed"] = params["embed"] * 20  # spreads the logits, so that an argmax is never a matter of rounding
    hf.save(folder, model, params)
    tokenizer(folder / "tokenizer.json")
    special(folder)
    return model, params
