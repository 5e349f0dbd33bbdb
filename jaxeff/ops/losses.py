"""Cross entropy of a language model's head, in chunks of tokens: [B, T, V] logits are never held.

    z = softcap(x W^T), and of each token the loss of `ops.token_loss`

B batch, T time, D model, V vocabulary, N chunks, P tokens of a chunk in each row, S parts of the time axis.

The gradients are computed along with the loss, chunk by chunk, since the loss is a sum and its cotangent a scalar: one product with
the head forward and two for the gradients, where computing the logits again would take a fourth.
"""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxeff.core.sharding import RULES, Rules
from jaxeff.core.target import platform
from jaxeff.core.tree import combine, partition
from jaxeff.core.weight import einsum, is_weight
from jaxeff.ops import token_loss
from jaxeff.ops.token_loss import Sums, Terms, Told

# float32 logits of a chunk on one device, about. On a CPU they stay in its cache; elsewhere the head is read, its gradient added up
# and, where the head is spread over devices, sent once a chunk, so that a few large ones are best: 512 MB.
LOGITS = {"cpu": 2**22}
LARGE = 2**27
# So few chunks are written one after the other, and the head's gradient is in x's dtype like other weights', so that XLA sends the
# sums of devices once. Until then it holds, in 16 bits, a product of each chunk, 1 GB at most together, or with larger heads the
# gradients of all logits, 1 GB at most, and a copy of them side by side.
FEW, SMALL = 4, 2**29
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
    mesh=None,
    rules: Rules = RULES,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss_sum, aux): the objective summed over tokens with the weights `mask_BT`, in nats, float32.

    head: an array or a weight node, [V, D] or with `axes` "dv" [D, V]; it acts on one chunk at a time and never becomes dense
    outside of it. Logits are its product with x in x's dtype, summed in float32. aux, not differentiated: `nll_sum`, the negative
    log-likelihood alone (loss_sum without smoothing and z-loss), `correct_sum`, the weight of the tokens whose target is the
    likeliest (or one of them), and `n_targets`, the sum of the mask.
    chunk: tokens of a row taken at once, by default so many that a chunk has about 4 million logits on each device, and at most 128
    million where the program is not for a CPU. mesh, rules: how x is spread over devices, see `core.sharding`.

    Raises ValueError for shapes that do not fit.
    """
    if targets_BT.shape != x_BTD.shape[:2] or mask_BT.shape != x_BTD.shape[:2]:
        raise ValueError(
            f"cross_entropy: targets {targets_BT.shape} and mask {mask_BT.shape} do not fit hidden states {x_BTD.shape}"
        )
    if not is_weight(head) and (head.ndim != 2 or head.shape[axes.index("d")] != x_BTD.shape[2]):
        raise ValueError(f"cross_entropy: a head of shape {head.shape} does not fit hidden states {x_BTD.shape}")
    vocabulary = jax.eval_shape(functools.partial(logits, axes=axes), x_BTD[:, :1], head).shape[-1]
    n = chunks(x_BTD.shape[:2], vocabulary, chunk, 1 if mesh is None else mesh.size)
    options = Options(n, axes, Terms(z_loss, label_smoothing, softcap), mesh, rules)
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
    """N, the number of chunks; by default a power of two away from CPUs, so that chunks are as even as lengths mostly are."""
    b, t = shape_BT
    if chunk is not None:
        return -(-t // max(1, chunk))
    n = -(-t // max(16, LOGITS.get(platform(), LARGE) * devices // (b * vocabulary)))
    return n if platform() == "cpu" else 2 ** math.ceil(math.log2(n))


class Options(NamedTuple):
    """What is static about a call: number of chunks, order of the head's axes, settings of the loss, and how x is spread."""

    n: int
    axes: str
    terms: Terms
    mesh: jax.sharding.Mesh | None
    rules: Rules

    @property
    def s(self) -> int:
        """S: a device has whole parts."""
        sizes = {} if self.mesh is None else self.mesh.shape
        return math.prod(sizes.get(axis, 1) for axis in self.rules.of_axis("time"))


def cut(x_BT, n: int, s: int):
    """[B, T, ...] -> [B, S, N, P / S, ...]: chunk i holds the i-th piece of each part; T is padded with zeros."""
    _, t, *rest = x_BT.shape
    x = jnp.pad(x_BT, ((0, 0), (0, -t % (n * s)), *((0, 0) for _ in rest)))
    return rearrange(x, "b (s n p) ... -> b s n p ...", s=s, n=n)


def pieces(x_BT, options: Options) -> list:
    """N chunks [B, P, ...] of whole pieces of each device's time."""
    x = cut(x_BT, options.n, options.s)
    return [rearrange(x[:, :, i], "b s p ... -> b (s p) ...") for i in range(options.n)]


def joined(xs_BP: list, t: int, options: Options):
    """The inverse of `pieces`."""
    x = jnp.stack([rearrange(x, "b (s p) ... -> b s p ...", s=options.s) for x in xs_BP], axis=2)
    return rearrange(x, "b s n p ... -> b (s n p) ...")[:, :t]


def split(x_BT, n: int):
    """[B, T, ...] -> [N, B, P, ...]: chunk i holds the tokens i, N + i, 2 N + i ..., so that the time axis stays spread over a mesh
    as it was; T is padded with zeros."""
    return rearrange(cut(x_BT, n, -(-x_BT.shape[1] // n)), "b p n 1 ... -> n b p ...")


def unsplit(x_NBP, t: int):
    """The inverse of `split`."""
    return rearrange(x_NBP, "n b p ... -> b (p n) ...")[:, :t]


def over_chunks(body, carry, arrays, n: int):
    """`carry, y = body(carry, chunk)` over the chunks of [B, T, ...] arrays; ys come back as they are, [N, B, P, ...]."""
    if n > 1:
        return jax.lax.scan(body, carry, tuple(split(x, n) for x in arrays))
    carry, ys = body(carry, arrays)
    return carry, jax.tree.map(lambda y: y[None], ys)


class Tokens(NamedTuple):
    """Of the tokens of a chunk: logits z [B, P, V], the soft cap's derivative there (None without one), where the target is, log
    of the softmax's denominator [B, P], and what is told of each."""

    z: jax.Array
    slope: jax.Array | None
    is_target: jax.Array
    lse: jax.Array
    told: Told


def logits(x_BPD, head, axes: str) -> jax.Array:
    """float32 [B, P, V], before the soft cap."""
    return einsum(f"bpd,{axes}->bpv", x_BPD, head, jnp.float32)


def tokens(y_BPV, targets_BP, terms: Terms) -> Tokens:
    """See `Tokens`."""
    z_BPV, slope_BPV = token_loss.capped(y_BPV, terms)
    top_BP1 = jnp.max(z_BPV, axis=-1, keepdims=True)
    exp_BP = jnp.sum(jnp.exp(z_BPV - top_BP1), axis=-1)
    # A comparison, not a gather: it fuses, and a vocabulary that is spread over devices stays so.
    is_target_BPV = jnp.arange(z_BPV.shape[-1], dtype=targets_BP.dtype)[None, None] == targets_BP[:, :, None]
    z_target_BP = jnp.sum(jnp.where(is_target_BPV, z_BPV, 0.0), axis=-1)
    mean_BP = jnp.mean(z_BPV, axis=-1) if terms.smoothing else None
    told, lse_BP = token_loss.loss(Sums(top_BP1[..., 0], exp_BP, z_target_BP, mean_BP), terms)
    return Tokens(z_BPV, slope_BPV, is_target_BPV, lse_BP, told)


def tokens_and_gradient(y_BPV, targets_BP, mask_BP, terms: Terms, half) -> tuple[Told, jax.Array]:
    """(what is told of tokens, gradient of the logits before the soft cap, in type `half`)."""
    t = tokens(y_BPV, targets_BP, terms)
    lse_BP1, mask_BP1 = t.lse[:, :, None], mask_BP[:, :, None]
    dy_BPV = token_loss.gradient(t.z, t.slope, t.is_target, lse_BP1, mask_BP1, t.z.shape[-1], terms)
    return t.told, dy_BPV.astype(half)


def in_one_pass(y_BPV, targets_BP, mask_BP, options: Options, half) -> tuple[Told, jax.Array]:
    """The same by a kernel, where it can serve the call."""
    if platform() == "tpu":
        from jaxeff.ops.pallas import token_loss as kernel

        spread = options.mesh, options.rules
        if kernel.why_not(y_BPV.shape, half, *spread) is None:
            return kernel.on_each_device(y_BPV, targets_BP, mask_BP, options.terms, *spread)
    return tokens_and_gradient(y_BPV, targets_BP, mask_BP, options.terms, half)


def sums(told: Told, mask_BP) -> jax.Array:
    """[loss, negative log-likelihood, correct] summed over tokens."""
    return jnp.stack([jnp.sum(x * mask_BP) for x in told])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def summed(x_BTD, head, targets_BT, mask_BT, options: Options):
    """(loss_sum, nll_sum, correct_sum). Only loss_sum is differentiated."""

    def body(total, chunk):
        x_BPD, targets_BP, mask_BP = chunk
        told = tokens(logits(x_BPD, head, options.axes), targets_BP, options.terms).told
        return total + sums(told, mask_BP), ()

    return tuple(over_chunks(body, jnp.zeros(3, jnp.float32), (x_BTD, targets_BT, mask_BT), options.n)[0])


class Gradients(NamedTuple):
    """Gradients of loss_sum with respect to x, head and mask."""

    x: jax.Array
    head: jax.Array
    mask: jax.Array


def forward(x_BTD, head, targets_BT, mask_BT, options: Options):
    """((loss_sum, nll_sum, correct_sum), `Gradients`)."""
    few = platform() != "cpu" and options.n <= FEW and not is_weight(head)
    total, gradients = (of_few if few else of_many)(x_BTD, head, targets_BT, mask_BT, options)
    return tuple(total), gradients


def of_few(x_BTD, head, targets_BT, mask_BT, options: Options) -> tuple[jax.Array, Gradients]:
    """([loss, negative log-likelihood, correct], gradients), one chunk written after the other."""
    total, losses, xs, dxs, dys = jnp.zeros(3, jnp.float32), [], [], [], []
    for x_BPD, targets_BP, mask_BP in zip(*(pieces(x, options) for x in (x_BTD, targets_BT, mask_BT)), strict=True):
        if dxs:  # one chunk's logits are done with before the next one's take memory
            x_BPD, dxs[-1] = jax.lax.optimization_barrier((x_BPD, dxs[-1]))
        y_BPV = logits(x_BPD, head, options.axes)
        told, dy_BPV = in_one_pass(y_BPV, targets_BP, mask_BP, options, x_BPD.dtype)
        total = total + sums(told, mask_BP)
        losses.append(told.loss)
        xs.append(x_BPD)
        dxs.append(input_gradient(x_BPD, head, dy_BPV, options.axes))
        dys.append(dy_BPV)
    dx_BTD, loss_BT = (joined(y, x_BTD.shape[1], options) for y in (dxs, losses))
    return total, Gradients(dx_BTD, head_gradient(xs, dys, head, options.axes), loss_BT)


def head_gradient(xs_BPD: list, dys_BPV: list, head, axes: str):
    """In x's dtype and the head's. XLA may hold a product of each chunk until it sends their sum: of a large head there is one."""
    if len(xs_BPD) * head.size <= SMALL:
        dhead = sum(jnp.einsum(f"bpd,bpv->{axes}", x, dy) for x, dy in zip(xs_BPD, dys_BPV, strict=True))
    else:
        dhead = jnp.einsum(f"nbpd,nbpv->{axes}", jnp.stack(xs_BPD), jnp.stack(dys_BPV))
    return dhead.astype(head.dtype)


def of_many(x_BTD, head, targets_BT, mask_BT, options: Options) -> tuple[jax.Array, Gradients]:
    """The same in a loop."""

    def body(carry, chunk):
        total, dhead = carry
        x_BPD, targets_BP, mask_BP = chunk
        y_BPV = logits(x_BPD, head, options.axes)
        told, dy_BPV = tokens_and_gradient(y_BPV, targets_BP, mask_BP, options.terms, x_BPD.dtype)
        dx, dhead_here = product_backward(x_BPD, head, dy_BPV, options.axes)
        return (total + sums(told, mask_BP), jax.tree.map(jnp.add, dhead, dhead_here)), (dx, told.loss)

    start = jnp.zeros(3, jnp.float32), zero_gradient(head, options.axes)
    (total, dhead), ys = over_chunks(body, start, (x_BTD, targets_BT, mask_BT), options.n)
    dx_BTD, loss_BT = (unsplit(y, x_BTD.shape[1]) for y in ys)
    return total, Gradients(dx_BTD, like_head(dhead, head, options.axes), loss_BT)


def backward(options: Options, gradients: Gradients, cotangents):
    """The gradients times the cotangent of loss_sum."""
    times = lambda x: x * cotangents[0].astype(x.dtype)
    return times(gradients.x), jax.tree.map(times, gradients.head), None, times(gradients.mask)


summed.defvjp(forward, backward)


def floats(head):
    """(the leaves of a weight node that have gradients, the rest), each None where the other is."""
    return partition(head, lambda path, leaf: jnp.issubdtype(leaf.dtype, jnp.inexact))


def input_gradient(x_BPD, head, dy_BPV, axes: str):
    """dx in x's dtype, for a head that is an array."""
    return jnp.einsum(f"bpv,{axes}->bpd", dy_BPV, head.astype(dy_BPV.dtype), **F32).astype(x_BPD.dtype)


def product_backward(x_BPD, head, dy_BPV, axes: str):
    """(dx in x's dtype, the head's gradient in float32: [D, V] for an array, in the structure of `floats` for a node)."""
    if not is_weight(head):
        return input_gradient(x_BPD, head, dy_BPV, axes), jnp.einsum("bpd,bpv->dv", x_BPD, dy_BPV, **F32)
    leaves, rest = floats(head)
    _, pull = jax.vjp(lambda x, leaves: logits(x, combine(leaves, rest), axes), x_BPD, leaves)
    dx, dleaves = pull(dy_BPV.astype(jnp.float32))
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
