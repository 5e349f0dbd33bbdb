"""Loss, perplexity and bits per byte of a language model over a split. B batch, T time, V vocabulary.

Bits per byte divides by the text's own length in UTF-8, and so compares models with different tokenizers; the end of a
document costs bits and stands for no byte.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable

import jax
import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.core.precision import POLICIES, Policy
from jaxeff.core.sharding import batch_sharding
from jaxeff.mixers.base import Ctx
from jaxeff.objectives.causal import Causal


def evaluate(
    model,
    params,
    batches: Iterable[dict],
    token_bytes,
    *,
    policy: Policy = POLICIES["float32"],
    mesh=None,
    limit: int | None = None,
    report: Callable[..., None] | None = None,
) -> dict[str, float]:
    """{"loss" (nats per token), "perplexity", "bits_per_byte", "n_tokens", "n_bytes"} over the batches' target tokens.

    batches: as `jaxeff.data` yields them. token_bytes: int [V], UTF-8 bytes that each token stands for. limit: how many batches,
    None for all. Raises UserError when there is no target token.
    """
    batches = list(itertools.islice(batches, limit))
    total_of = _sums(model, policy, mesh)
    lay = batch_sharding(mesh) if mesh is not None else None
    bytes_V = np.asarray(token_bytes)
    nll = n_tokens = n_bytes = 0
    pending = None
    for i, batch in enumerate([*batches, None]):
        # The sum of the batch before is read only after this one has been sent off.
        queued = None if batch is None else total_of(params, _put(batch, lay))
        if pending is not None:
            nll += jax.device_get(pending).item()
        pending = queued
        if batch is not None:
            targets = np.asarray(batch["tokens"])[:, 1:][np.asarray(batch["loss_mask"])[:, :-1] > 0]
            n_tokens += targets.size
            n_bytes += int(bytes_V[targets].sum())
            if report is not None:
                report("evaluating", i + 1, len(batches))
    if not n_tokens or not n_bytes:
        raise UserError("the split has no text to predict: give it a larger share of the corpus")
    loss = nll / n_tokens
    perplexity = math.exp(loss) if loss < 700 else math.inf
    bits = nll / math.log(2) / n_bytes
    return {"loss": loss, "perplexity": perplexity, "bits_per_byte": bits, "n_tokens": n_tokens, "n_bytes": n_bytes}


def _put(batch: dict, sharding):
    return jax.device_put(batch) if sharding is None else jax.device_put(batch, sharding)


@functools.lru_cache(maxsize=32)
def _sums(model, policy: Policy, mesh):
    """The jitted sum of nats over a batch, one per model."""
    objective, ctx = Causal(), Ctx(policy=policy, mesh=mesh if mesh is not None and mesh.size > 1 else None)

    @jax.jit
    def nll_sum(params, batch) -> jax.Array:
        return objective.loss(model, params, batch, ctx)[1]["nll_sum"]

    return nll_sum
