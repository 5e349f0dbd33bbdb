"""Models built from blocks of mixers."""

from jaxeff.models.block import Block
from jaxeff.models.generate import generate
from jaxeff.models.lm import LM, Segment

__all__ = ["LM", "Block", "Segment", "generate"]
