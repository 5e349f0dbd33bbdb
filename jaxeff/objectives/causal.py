"""Next-token prediction. B batch, T time, D model."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxeff.mixers.base import Ctx
from jaxeff.ops.losses import cross_entropy


def next_tokens(tokens_BT: jax.Array) -> jax.Array:
    """The token that each position is to predict; the last column has none (its mask is 0)."""
    return jnp.roll(tokens_BT, -1, axis=1)


@dataclasses.dataclass(frozen=True)
class Causal:
    """Mean negative log-likelihood of the next token, in nats.

    z_loss: weight of log(Z)^2 (Chowdhery et al. 2022, PaLM, section 5). label_smoothing: probability spread over the vocabulary.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        if self.z_loss < 0:
            raise ValueError(f"Causal.z_loss must be at least 0, found {self.z_loss}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"Causal.label_smoothing must lie in [0, 1), found {self.label_smoothing}")

    def loss(self, model, params, batch, ctx: Ctx = Ctx()):
        """(mean loss per target token, metrics), both float32 scalars.

        batch: `tokens`, `segment_ids`, `positions` int32 [B, T] and `loss_mask` float32 [B, T]. metrics: `nll_sum`, the negative
        log-likelihood alone, in nats, and `n_targets`, the weight of this mean among other batches' means.
        """
        ctx = dataclasses.replace(ctx, segment_ids=batch["segment_ids"], positions=batch["positions"])
        x_BTD, _ = model.hidden(params, batch["tokens"], None, ctx)
        loss_sum, metrics = cross_entropy(
            x_BTD,
            model.head(params, x_BTD.dtype),
            next_tokens(batch["tokens"]),
            batch["loss_mask"],
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
            softcap=model.softcap,
        )
        return loss_sum / jnp.maximum(metrics["n_targets"], 1.0), metrics
