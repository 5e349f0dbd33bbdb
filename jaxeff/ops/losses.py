"""Cross entropy of a language model's head, in chunks of tokens: [B, T, V] logits are never held.

Their gradients are, in x's type, where they are few chunks and the program is not for a CPU (`KEPT`).

    z = softcap(x W^T)    loss = logsumexp(z) - (1 - e) z_target - e mean(z) + zeta logsumexp(z)^2

with label smoothing e (Szegedy et al. 2016) and z-loss zeta (Chowdhery et al. 2022, PaLM, section 5).

B batch, T time, D model, V vocabulary, N chunks, P tokens of a chunk in each row.

The gradients are computed along with the loss, chunk by chunk, since the loss is a sum and its cotangent a scalar: one
product with the head forward and two for the gradients, where computing the logits again would take a fourth. A chunk takes
every N-th token of a row, so that the batch and the time axis stay spread over a mesh as they were.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxeff.core.target import platform
from jaxeff.core.tree import combine, partition
from jaxeff.core.weight import einsum, is_weight

# float32 logits of a chunk on one device, about. On a CPU they stay in its cache; elsewhere the head is read, its gradient added up
# and, where the head is spread over devices, sent once a chunk, so that a few large ones are best: 512 MB.
LOGITS = {"cpu": 2**22}
LARGE = 2**27
# Of so few chunks the gradients of the logits are kept, in x's dtype, and the head's is one product at the end, in x's dtype like
# other weights' gradients: devices send their partial sums once. At most 1 GB a device in 16 bits.
KEPT = 4
F32 = {"preferred_element_type": jnp.float32}


def cross_entropy(
    x_BTD: jax.Array,
    head,
    targets_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    axes: Literal["vd", "dv"] = "vd",
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
    devices: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss_sum, aux): the objective summed over tokens with the weights `mask_BT`, in nats, float32.

    head: an array or a weight node, [V, D] or with `axes` "dv" [D, V]; it acts on one chunk at a time and never becomes dense
    outside of it. Logits are its product with x in x's dtype, summed in float32. aux, not differentiated: `nll_sum`, the negative
    log-likelihood alone (loss_sum without smoothing and z-loss), `correct_sum`, the weight of the tokens whose target is the
    likeliest (or one of them), and `n_targets`, the sum of the mask.
    chunk: tokens of a row taken at once, by default so many that a chunk has about 4 million logits on each of `devices`, over
    which x is spread, and 128 million where the program is not for a CPU.

    Raises ValueError for shapes that do not fit.
    """
    if targets_BT.shape != x_BTD.shape[:2] or mask_BT.shape != x_BTD.shape[:2]:
        raise ValueError(
            f"cross_entropy: targets {targets_BT.shape} and mask {mask_BT.shape} do not fit hidden states {x_BTD.shape}"
        )
    if not is_weight(head) and (head.ndim != 2 or head.shape[axes.index("d")] != x_BTD.shape[2]):
        raise ValueError(f"cross_entropy: a head of shape {head.shape} does not fit hidden states {x_BTD.shape}")
    vocabulary = jax.eval_shape(functools.partial(logits, axes=axes), x_BTD[:, :1], head).shape[-1]
    n = chunks(x_BTD.shape[:2], vocabulary, chunk, devices)
    options = Options(n, axes, z_loss, label_smoothing, softcap)
    mask_BT = mask_BT.astype(jnp.float32)
    loss_sum, *told = summed(x_BTD, head, targets_BT, mask_BT, options)
    nll_sum, correct_sum = map(jax.lax.stop_gradient, told)
    return loss_sum, {"nll_sum": nll_sum, "correct_sum": correct_sum, "n_targets": jnp.sum(mask_BT)}


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


def chunks(shape_BT: tuple[int, int], vocabulary: int, chunk: int | None, devices: int = 1) -> int:
    """N, the number of chunks."""
    b, t = shape_BT
    if chunk is None:
        chunk = max(16, LOGITS.get(platform(), LARGE) * devices // (b * vocabulary))
    return -(-t // max(1, chunk))


def split(x_BT, n: int):
    """[B, T, ...] -> [N, B, P, ...]: chunk i holds the tokens i, N + i, 2 N + i ...; T is padded with zeros."""
    _, t, *rest = x_BT.shape
    x = jnp.pad(x_BT, ((0, 0), (0, -t % n), *((0, 0) for _ in rest)))
    return rearrange(x, "b (p n) ... -> n b p ...", n=n)


def unsplit(x_NBP, t: int):
    """The inverse of `split`."""
    return rearrange(x_NBP, "n b p ... -> b (p n) ...")[:, :t]


def over_chunks(body, carry, arrays, n: int):
    """`carry, y = body(carry, chunk)` over the chunks of [B, T, ...] arrays; ys come back as they are, [N, B, P, ...]."""
    if n > 1:
        return jax.lax.scan(body, carry, tuple(split(x, n) for x in arrays))
    carry, ys = body(carry, arrays)
    return carry, jax.tree.map(lambda y: y[None], ys)


class Options(NamedTuple):
    """What is static about a call: number of chunks, order of the head's axes, and the settings of the loss."""

    n: int
    axes: str
    z_loss: float
    smoothing: float
    softcap: float | None


class Tokens(NamedTuple):
    """Of the tokens of a chunk: logits z [B, P, V], the soft cap's derivative there (None without one), where the target is,
    and [B, P] log of the softmax's denominator, negative log-likelihood, loss, and whether the target is the likeliest."""

    z: jax.Array
    slope: jax.Array | None
    is_target: jax.Array
    lse: jax.Array
    nll: jax.Array
    loss: jax.Array
    correct: jax.Array


def logits(x_BPD, head, axes: str) -> jax.Array:
    """float32 [B, P, V]."""
    return einsum(f"bpd,{axes}->bpv", x_BPD, head, jnp.float32)


def tokens(x_BPD, head, targets_BP, options: Options) -> Tokens:
    """See `Tokens`."""
    z_BPV, slope_BPV = logits(x_BPD, head, options.axes), None
    if options.softcap is not None:
        tanh_BPV = jnp.tanh(z_BPV * (1 / options.softcap))
        z_BPV, slope_BPV = options.softcap * tanh_BPV, 1 - tanh_BPV * tanh_BPV
    top_BP1 = jnp.max(z_BPV, axis=-1, keepdims=True)
    lse_BP = top_BP1[..., 0] + jnp.log(jnp.sum(jnp.exp(z_BPV - top_BP1), axis=-1))
    # A comparison, not a gather: it fuses, and a vocabulary that is spread over devices stays so.
    is_target_BPV = jnp.arange(z_BPV.shape[-1], dtype=targets_BP.dtype)[None, None] == targets_BP[:, :, None]
    z_target_BP = jnp.sum(jnp.where(is_target_BPV, z_BPV, 0.0), axis=-1)
    nll_BP = lse_BP - z_target_BP
    loss_BP = nll_BP
    if options.smoothing:
        loss_BP = (1 - options.smoothing) * nll_BP + options.smoothing * (lse_BP - jnp.mean(z_BPV, axis=-1))
    if options.z_loss:
        loss_BP = loss_BP + options.z_loss * lse_BP**2
    correct_BP = (z_target_BP >= top_BP1[..., 0]).astype(jnp.float32)
    return Tokens(z_BPV, slope_BPV, is_target_BPV, lse_BP, nll_BP, loss_BP, correct_BP)


def sums(t: Tokens, mask_BP) -> jax.Array:
    """[loss, negative log-likelihood, correct] summed over tokens."""
    return jnp.stack([jnp.sum(x * mask_BP) for x in (t.loss, t.nll, t.correct)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def summed(x_BTD, head, targets_BT, mask_BT, options: Options):
    """(loss_sum, nll_sum, correct_sum). Only loss_sum is differentiated."""

    def body(total, chunk):
        x_BPD, targets_BP, mask_BP = chunk
        return total + sums(tokens(x_BPD, head, targets_BP, options), mask_BP), ()

    return tuple(over_chunks(body, jnp.zeros(3, jnp.float32), (x_BTD, targets_BT, mask_BT), options.n)[0])


def forward(x_BTD, head, targets_BT, mask_BT, options: Options):
    """((loss_sum, nll_sum, correct_sum), gradients of loss_sum)."""
    z_loss, smoothing = options.z_loss, options.smoothing
    at_once = platform() != "cpu" and options.n <= KEPT and not is_weight(head)

    def body(carry, chunk):
        total, dhead = carry
        x_BPD, targets_BP, mask_BP = chunk
        t = tokens(x_BPD, head, targets_BP, options)
        share = 1 + 2 * z_loss * t.lse if z_loss else jnp.ones_like(t.lse)
        dz = jnp.exp(t.z - t.lse[:, :, None]) * share[:, :, None] - jnp.where(t.is_target, 1 - smoothing, 0.0)
        if smoothing:
            dz = dz - smoothing / t.z.shape[-1]
        dz = dz * mask_BP[:, :, None]
        dz = (dz if t.slope is None else dz * t.slope).astype(x_BPD.dtype)
        total = total + sums(t, mask_BP)
        if at_once:
            return (total, None), (input_gradient(x_BPD, head, dz, options.axes), t.loss, dz)
        dx, dhead_here = product_backward(x_BPD, head, dz, options.axes)
        return (total, jax.tree.map(jnp.add, dhead, dhead_here)), (dx, t.loss, None)

    start = jnp.zeros(3, jnp.float32), None if at_once else zero_gradient(head, options.axes)
    (total, dhead), (*told, dz_NBPV) = over_chunks(body, start, (x_BTD, targets_BT, mask_BT), options.n)
    dx_BTD, loss_BT = (unsplit(y, x_BTD.shape[1]) for y in told)
    if at_once:
        dhead = jnp.einsum("nbpd,nbpv->dv", split(x_BTD, options.n), dz_NBPV)
    return tuple(total), (dx_BTD, like_head(dhead, head, options.axes), loss_BT)


def backward(options: Options, gradients, cotangents):
    """The gradients times the cotangent of loss_sum."""
    dx_BTD, dhead, loss_BT = gradients
    times = lambda x: x * cotangents[0].astype(x.dtype)
    return times(dx_BTD), jax.tree.map(times, dhead), None, times(loss_BT)


summed.defvjp(forward, backward)


def floats(head):
    """(the leaves of a weight node that have gradients, the rest), each None where the other is."""
    return partition(head, lambda path, leaf: jnp.issubdtype(leaf.dtype, jnp.inexact))


def input_gradient(x_BPD, head, dz_BPV, axes: str):
    """dx in x's dtype, for a head that is an array."""
    return jnp.einsum(f"bpv,{axes}->bpd", dz_BPV, head.astype(dz_BPV.dtype), **F32).astype(x_BPD.dtype)


def product_backward(x_BPD, head, dz_BPV, axes: str):
    """(dx in x's dtype, the head's gradient in float32: [D, V] for an array, in the structure of `floats` for a node)."""
    if not is_weight(head):
        return input_gradient(x_BPD, head, dz_BPV, axes), jnp.einsum("bpd,bpv->dv", x_BPD, dz_BPV, **F32)
    leaves, rest = floats(head)
    _, pull = jax.vjp(lambda x, leaves: logits(x, combine(leaves, rest), axes), x_BPD, leaves)
    dx, dleaves = pull(dz_BPV.astype(jnp.float32))
    return dx, jax.tree.map(lambda d: d.astype(jnp.float32), dleaves)


def zero_gradient(head, axes: str):
    """What `product_backward` adds to."""
    if is_weight(head):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), floats(head)[0])
    return jnp.zeros(head.shape if axes == "dv" else head.shape[::-1], jnp.float32)


def like_head(dhead, head, axes: str):
    """The head's gradient in the head's own form and dtypes; None for leaves that have none."""
    if is_weight(head):
        return jax.tree.map(lambda d, leaf: d.astype(leaf.dtype), dhead, floats(head)[0])
    # Behind the barrier the transpose is not folded into the product, which XLA's CPU backend runs faster as it stands.
    dhead_DV = jax.lax.optimization_barrier(dhead)
    return (dhead_DV if axes == "dv" else dhead_DV.T).astype(head.dtype)
