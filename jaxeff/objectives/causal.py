"""Next-token prediction, or of whatever data say is to be told at each place. B batch, T time, D model."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from jaxeff.mixers.base import Ctx
from jaxeff.objectives.base import Score, Sum, with_aux
from jaxeff.ops.losses import cross_entropy


def next_tokens(tokens_BT: jax.Array) -> jax.Array:
    """The token that each position is to predict; the last column has none (its mask is 0)."""
    return jnp.roll(tokens_BT, -1, axis=1)


@dataclasses.dataclass(frozen=True)
class Causal:
    """Mean negative log-likelihood of the next token, in nats.

    z_loss: weight of log(Z)^2 (Chowdhery et al. 2022, PaLM, section 5). label_smoothing: probability spread over the vocabulary.
    follow: the score that decides; bits per byte needs data that know their bytes.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    follow: Literal["bits_per_byte", "loss", "perplexity", "accuracy"] = "bits_per_byte"

    def __post_init__(self):
        if self.z_loss < 0:
            raise ValueError(f"Causal.z_loss must be at least 0, found {self.z_loss}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"Causal.label_smoothing must lie in [0, 1), found {self.label_smoothing}")

    @property
    def score(self) -> Score:
        """`follow` with its direction."""
        return Score(self.follow, higher_is_better=self.follow == "accuracy")

    def sums(self, model, params, batch: Mapping[str, jax.Array], ctx: Ctx = Ctx()) -> dict[str, Sum]:
        """`loss`; `nll`, the negative log-likelihood alone, in nats; `accuracy`; and the metrics of the model's layers.

        batch: `tokens`, `segment_ids`, `positions` int32 [B, T] and `loss_mask` float32 [B, T], the weight of each prediction; what
        is predicted are `targets` int32 [B, T] where the data has them, else the next tokens.
        With `target_bytes` [B, T], the bytes of text that each prediction stands for, also `bits`, weighted by them.
        """
        ctx = dataclasses.replace(ctx, segment_ids=batch["segment_ids"], positions=batch["positions"])
        out = model.hidden(params, batch["tokens"], None, ctx=ctx)
        head, axes = model.head(params)
        loss_sum, told = cross_entropy(
            out.y,
            head,
            batch["targets"] if "targets" in batch else next_tokens(batch["tokens"]),
            batch["loss_mask"],
            axes=axes,
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
            softcap=model.softcap,
            mesh=ctx.mesh,
            rules=ctx.rules,
        )
        n = told["n_targets"]
        sums = {"loss": Sum(loss_sum, n), "nll": Sum(told["nll_sum"], n), "accuracy": Sum(told["correct_sum"], n)}
        if "target_bytes" in batch:
            sums["bits"] = Sum(told["nll_sum"] / math.log(2), jnp.sum(batch["target_bytes"].astype(jnp.float32)))
        return with_aux(sums, out.aux)

    def loss(self, sums: Mapping[str, Sum]) -> jax.Array:
        """The mean over targets, auxiliary losses added."""
        return sums["loss"].mean

    def scores(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """`loss` (nats per token, without smoothing, z-loss and auxiliary losses), `perplexity`, `accuracy`, and
        `bits_per_byte` where bytes are known, which compares models with different tokenizers."""
        nll = sums["nll"].mean
        scores = {
            "loss": nll,
            "perplexity": math.exp(nll) if nll < 700 else math.inf,
            "accuracy": sums["accuracy"].mean,
        }
        return scores | ({"bits_per_byte": sums["bits"].mean} if "bits" in sums else {})
