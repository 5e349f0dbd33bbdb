"""What is minimised: `loss(model, params, batch, ctx) -> (scalar, metrics)`."""

from jaxeff.objectives.causal import Causal

__all__ = ["Causal"]
