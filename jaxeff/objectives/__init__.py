"""What is minimised: parameters and a batch to sums; see `objectives.base`."""

from jaxeff.objectives.base import Objective, Score, Sum
from jaxeff.objectives.causal import Causal

__all__ = ["Causal", "Objective", "Score", "Sum"]
