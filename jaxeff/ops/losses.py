"""Cross entropy of a language model's head, in chunks of tokens: [B, T, V] logits are never held.

    z = softcap(x W^T)    loss = logsumexp(z) - (1 - e) z_target - e mean(z) + zeta logsumexp(z)^2

with label smoothing e (Szegedy et al. 2016) and z-loss zeta (Chowdhery et al. 2022, PaLM, section 5).

B batch, T time, D model, V vocabulary, N chunks, P tokens of a chunk in each row.

The gradients are computed along with the loss, chunk by chunk, since the loss is a sum and its cotangent a scalar: one
product with the head forward and two for the gradients, where computing the logits again would take a fourth. A chunk takes
every N-th token of a row, so that the batch and the time axis stay spread over a mesh as they were.
"""

import functools

import jax
import jax.numpy as jnp

from jaxeff.core.weight import dense

LOGITS = 2**22  # float32 logits of a chunk, about: 16 MB
F32 = {"preferred_element_type": jnp.float32}


def cross_entropy(
    x_BTD: jax.Array,
    head_VD,
    targets_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss_sum, aux): the objective summed over tokens with the weights `mask_BT`, in nats, float32.

    head_VD is an array or a weight node; logits are its product with x in x's dtype, summed in float32. aux, not differentiated:
    `nll_sum`, the negative log-likelihood alone (loss_sum without smoothing and z-loss), and `n_targets`, the sum of the mask.
    chunk: tokens of a row taken at once, by default so many that a chunk has about 4 million logits.

    Raises ValueError for shapes that do not fit.
    """
    if targets_BT.shape != x_BTD.shape[:2] or mask_BT.shape != x_BTD.shape[:2]:
        raise ValueError(
            f"cross_entropy: targets {targets_BT.shape} and mask {mask_BT.shape} do not fit hidden states {x_BTD.shape}"
        )
    head_VD = dense(head_VD, getattr(head_VD, "dtype", x_BTD.dtype))
    if head_VD.ndim != 2 or head_VD.shape[1] != x_BTD.shape[2]:
        raise ValueError(f"cross_entropy: a head of shape {head_VD.shape} does not fit hidden states {x_BTD.shape}")
    n = chunks(x_BTD.shape[:2], head_VD.shape[0], chunk)
    options = (n, z_loss, label_smoothing, softcap)
    loss_sum, nll_sum = summed(x_BTD, head_VD, targets_BT, mask_BT.astype(jnp.float32), options)
    return loss_sum, {"nll_sum": jax.lax.stop_gradient(nll_sum), "n_targets": jnp.sum(mask_BT.astype(jnp.float32))}


def cross_entropy_reference(
    logits_BTV: jax.Array,
    targets_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
) -> jax.Array:
    """The same sum from logits that are all there, before the soft cap."""
    z_BTV = logits_BTV.astype(jnp.float32)
    if softcap is not None:
        z_BTV = softcap * jnp.tanh(z_BTV / softcap)
    log_p_BTV = jax.nn.log_softmax(z_BTV, axis=-1)
    nll_BT = -jnp.take_along_axis(log_p_BTV, targets_BT[:, :, None], axis=-1)[:, :, 0]
    loss_BT = (1 - label_smoothing) * nll_BT - label_smoothing * jnp.mean(log_p_BTV, axis=-1)
    loss_BT = loss_BT + z_loss * jax.nn.logsumexp(z_BTV, axis=-1) ** 2
    return jnp.sum(loss_BT * mask_BT.astype(jnp.float32))


def chunks(shape_BT: tuple[int, int], vocabulary: int, chunk: int | None) -> int:
    """N, the number of chunks."""
    b, t = shape_BT
    if chunk is None:
        chunk = max(16, LOGITS // (b * vocabulary))
    return -(-t // max(1, chunk))


def split(x_BT, n: int):
    """[B, T, ...] -> [N, B, P, ...]: chunk i holds the tokens i, N + i, 2 N + i ...; T is padded with zeros."""
    b, t, *rest = x_BT.shape
    x = jnp.pad(x_BT, ((0, 0), (0, -t % n), *((0, 0) for _ in rest)))
    return jnp.moveaxis(x.reshape(b, -1, n, *rest), 2, 0)


def unsplit(x_NBP, t: int):
    """The inverse of `split`."""
    n, b, p, *rest = x_NBP.shape
    return jnp.moveaxis(x_NBP, 0, 2).reshape(b, p * n, *rest)[:, :t]


def over_chunks(body, carry, arrays, n: int):
    """`carry, y = body(carry, chunk)` over the chunks of [B, T, ...] arrays; ys come back as [B, T, ...]."""
    t = arrays[0].shape[1]
    if n == 1:
        return body(carry, arrays)
    carry, ys = jax.lax.scan(body, carry, tuple(split(x, n) for x in arrays))
    return carry, jax.tree.map(lambda y: unsplit(y, t), ys)


def tokens(x_BPD, head_VD, targets_BP, options):
    """(z, slope, is_target, lse, nll, loss) of the tokens of a chunk; slope is the soft cap's derivative or None."""
    _, z_loss, smoothing, softcap = options
    z_BPV = jnp.einsum("bpd,vd->bpv", x_BPD, head_VD.astype(x_BPD.dtype), **F32)
    slope_BPV = None
    if softcap is not None:
        tanh_BPV = jnp.tanh(z_BPV * (1 / softcap))
        z_BPV, slope_BPV = softcap * tanh_BPV, 1 - tanh_BPV * tanh_BPV
    top_BP1 = jnp.max(z_BPV, axis=-1, keepdims=True)
    lse_BP = top_BP1[..., 0] + jnp.log(jnp.sum(jnp.exp(z_BPV - top_BP1), axis=-1))
    # A comparison, not a gather: it fuses, and a vocabulary that is spread over devices stays so.
    is_target_BPV = jnp.arange(z_BPV.shape[-1], dtype=targets_BP.dtype)[None, None] == targets_BP[:, :, None]
    nll_BP = lse_BP - jnp.sum(jnp.where(is_target_BPV, z_BPV, 0.0), axis=-1)
    loss_BP = nll_BP
    if smoothing:
        loss_BP = (1 - smoothing) * nll_BP + smoothing * (lse_BP - jnp.mean(z_BPV, axis=-1))
    if z_loss:
        loss_BP = loss_BP + z_loss * lse_BP**2
    return z_BPV, slope_BPV, is_target_BPV, lse_BP, nll_BP, loss_BP


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def summed(x_BTD, head_VD, targets_BT, mask_BT, options):
    """(loss_sum, nll_sum). Only loss_sum is differentiated."""

    def body(sums, chunk):
        x_BPD, targets_BP, mask_BP = chunk
        *_, nll_BP, loss_BP = tokens(x_BPD, head_VD, targets_BP, options)
        return (sums[0] + jnp.sum(loss_BP * mask_BP), sums[1] + jnp.sum(nll_BP * mask_BP)), ()

    zero = jnp.zeros((), jnp.float32)
    return over_chunks(body, (zero, zero), (x_BTD, targets_BT, mask_BT), options[0])[0]


def forward(x_BTD, head_VD, targets_BT, mask_BT, options):
    """((loss_sum, nll_sum), gradients of loss_sum)."""
    n, z_loss, smoothing, _ = options

    def body(carry, chunk):
        loss_sum, nll_sum, dhead_DV = carry
        x_BPD, targets_BP, mask_BP = chunk
        z, slope, is_target, lse, nll, loss = tokens(x_BPD, head_VD, targets_BP, options)
        share = 1 + 2 * z_loss * lse if z_loss else jnp.ones_like(lse)
        dz = jnp.exp(z - lse[:, :, None]) * share[:, :, None] - jnp.where(is_target, 1 - smoothing, 0.0)
        if smoothing:
            dz = dz - smoothing / z.shape[-1]
        dz = dz * mask_BP[:, :, None]
        dz = (dz if slope is None else dz * slope).astype(x_BPD.dtype)
        dx = jnp.einsum("bpv,vd->bpd", dz, head_VD.astype(dz.dtype), **F32).astype(x_BPD.dtype)
        dhead_DV = dhead_DV + jnp.einsum("bpd,bpv->dv", x_BPD, dz, **F32)
        return (loss_sum + jnp.sum(loss * mask_BP), nll_sum + jnp.sum(nll * mask_BP), dhead_DV), (dx, loss)

    zero = jnp.zeros((), jnp.float32)
    dhead_DV = jnp.zeros(head_VD.shape[::-1], jnp.float32)
    (loss_sum, nll_sum, dhead_DV), (dx_BTD, loss_BT) = over_chunks(
        body, (zero, zero, dhead_DV), (x_BTD, targets_BT, mask_BT), n
    )
    # Behind the barrier the transpose is not folded into the product, which XLA's CPU backend runs faster as it stands.
    dhead_DV = jax.lax.optimization_barrier(dhead_DV)
    return (loss_sum, nll_sum), (dx_BTD, dhead_DV.T.astype(head_VD.dtype), loss_BT)


def backward(options, gradients, cotangents):
    """The gradients times the cotangent of loss_sum."""
    dx_BTD, dhead_VD, loss_BT = gradients
    by = cotangents[0]
    return dx_BTD * by.astype(dx_BTD.dtype), dhead_VD * by.astype(dhead_VD.dtype), None, loss_BT * by


summed.defvjp(forward, backward)
