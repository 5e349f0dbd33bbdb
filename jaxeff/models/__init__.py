"""Models built from blocks of mixers."""

from jaxeff.models.block import Block
from jaxeff.models.generate import generate, stream
from jaxeff.models.lm import LM
from jaxeff.models.rwkv import rwkv7_stages
from jaxeff.models.stack import Stage, Tied

__all__ = ["LM", "Block", "Stage", "Tied", "generate", "rwkv7_stages", "stream"]
