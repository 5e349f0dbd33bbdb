"""How well a model predicts held-out text. B batch, T time, D model, V vocabulary."""

import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.precision import POLICIES, Policy
from jaxeff.core.sharding import batch_sharding
from jaxeff.mixers.base import Ctx
from jaxeff.objectives.causal import Causal, next_tokens


def evaluate(
    model,
    params,
    batches: Iterable[dict[str, Any]],
    token_bytes_V,
    *,
    policy: Policy = POLICIES["float32"],
    mesh=None,
    limit: int | None = None,
) -> dict[str, float]:
    """Loss and its readings over batches of held-out text, of which at most `limit` are read.

    loss: nats per target token; perplexity: its exponential; bits_per_byte: bits per UTF-8 byte of the text that the targets stand
    for, which compares across tokenizers; n_tokens, n_bytes: how much text that was. The end of a document is predicted too:
    its bits count, and it has no bytes. A non-finite loss gives non-finite readings.

    Raises UserError when there is no text.
    """
    sums = _sums(model, policy, None if mesh is None or mesh.size == 1 else mesh)
    bytes_V = jnp.asarray(token_bytes_V, jnp.int32)
    nll = n_tokens = n_bytes = 0.0
    for batch in itertools.islice(batches, limit):
        batch = batch if mesh is None else jax.device_put(batch, batch_sharding(mesh))
        # Sums over batches are the host's, in float64.
        found = [float(x) for x in sums(params, batch, bytes_V)]
        nll, n_tokens, n_bytes = nll + found[0], n_tokens + found[1], n_bytes + found[2]
    if not n_bytes:
        raise UserError("there is no text to evaluate on: the split is empty")
    loss = nll / n_tokens
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "bits_per_byte": nll / math.log(2) / n_bytes,
        "n_tokens": int(n_tokens),
        "n_bytes": int(n_bytes),
    }


@functools.lru_cache(maxsize=32)
def _sums(model, policy: Policy, mesh):
    @jax.jit
    def sums(params, batch, bytes_V):
        _, metrics = Causal().loss(model, params, batch, Ctx(policy=policy, mesh=mesh))
        counted_BT = jnp.where(batch["loss_mask"] > 0, jnp.take(bytes_V, next_tokens(batch["tokens"])), 0)
        return metrics["nll_sum"], metrics["n_targets"], jnp.sum(counted_BT)

    return sums
