"""The equations of the cross entropy of one token and of its gradient, for any number of logits at once.

    z = softcap(y)    loss = logsumexp(z) - (1 - e) z_target - e mean(z) + zeta logsumexp(z)^2

with label smoothing e (Szegedy et al. 2016) and z-loss zeta (Chowdhery et al. 2022, PaLM, section 5). All in float32.

P tokens, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Terms(NamedTuple):
    """The settings of a loss."""

    z_loss: float
    smoothing: float
    softcap: float | None


class Sums(NamedTuple):
    """Of a token's logits, [P]: the largest, the sum of exp(z - top), the target's, and the mean, None where none is asked for."""

    top: jax.Array
    exp: jax.Array
    target: jax.Array
    mean: jax.Array | None


class Told(NamedTuple):
    """Of a token, [P]: loss, negative log-likelihood, and whether the target is the likeliest (or one of them)."""

    loss: jax.Array
    nll: jax.Array
    correct: jax.Array


def capped(y_PV, terms: Terms):
    """(z, dz/dy, None without a soft cap) of logits as they come from the product."""
    if terms.softcap is None:
        return y_PV, None
    tanh_PV = jnp.tanh(y_PV * (1 / terms.softcap))
    return terms.softcap * tanh_PV, 1 - tanh_PV * tanh_PV


def loss(sums: Sums, terms: Terms) -> tuple[Told, jax.Array]:
    """(what is told of tokens, log of the softmax's denominator)."""
    lse_P = sums.top + jnp.log(sums.exp)
    nll_P = lse_P - sums.target
    loss_P = nll_P
    if terms.smoothing:
        loss_P = (1 - terms.smoothing) * nll_P + terms.smoothing * (lse_P - sums.mean)
    if terms.z_loss:
        loss_P = loss_P + terms.z_loss * lse_P**2
    return Told(loss_P, nll_P, (sums.target >= sums.top).astype(jnp.float32)), lse_P


def gradient(z_PV, slope_PV, is_target_PV, lse_P1, mask_P1, vocabulary: int, terms: Terms):
    """d(mask loss)/dy of logits, all V or some of them."""
    share_P1 = 1 + 2 * terms.z_loss * lse_P1 if terms.z_loss else jnp.ones_like(lse_P1)
    dz_PV = jnp.exp(z_PV - lse_P1) * share_P1 - jnp.where(is_target_PV, 1 - terms.smoothing, 0.0)
    if terms.smoothing:
        dz_PV = dz_PV - terms.smoothing / vocabulary
    dz_PV = dz_PV * mask_P1
    return dz_PV if slope_PV is None else dz_PV * slope_PV
