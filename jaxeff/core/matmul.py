"""Products of activations with weights, in the form that XLA compiles best. N rows of x, I inputs, O outputs of w.

On a CPU two things make the gradient with respect to a weight up to twice as slow as the forward product: activations of
rank 3, whose contracted axes the compiler turns into a pair of transposed operands that its matrix product library refuses;
and a gradient [I, O] with I > O, whose large operand has to be read against its rows. So x is flattened to [N, I], and a
weight with I > O goes through a transposed copy, behind a barrier so that the two transposes are not folded back into the
product; the gradient is then formed as [O, I]. Only x and w are kept for the backward pass, not their rearranged copies,
which under a scan over layers would be stored for every layer. All this is differentiable to any order in either mode.
Other backends choose layouts themselves and get the plain einsum.
"""

import functools
import math

import jax
import jax.numpy as jnp

MIN_ROWS = 64  # with fewer rows (decoding) the product is as cheap as copying the weight


def einsum(eqn: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """`jnp.einsum(eqn, x, w)` for arrays of one dtype."""
    n_in = inner(eqn)
    rows = math.prod(x.shape[: x.ndim - (n_in or 0)])
    if n_in is None or rows < MIN_ROWS or jax.default_backend() != "cpu":
        return jnp.einsum(eqn, x, w)
    return flat(x, w, n_in)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(2,))
def flat(x: jax.Array, w: jax.Array, n_in: int) -> jax.Array:
    """x [outer, inner] times w [inner, out] as a product of matrices; `n_in` axes are inner."""
    outer, out = x.shape[: x.ndim - n_in], w.shape[n_in:]
    w_IO = w.reshape(math.prod(w.shape[:n_in]), math.prod(out))
    x_NI = x.reshape(-1, w_IO.shape[0])
    if w_IO.shape[0] > w_IO.shape[1]:
        y_NO = jnp.einsum("ni,oi->no", x_NI, jax.lax.optimization_barrier(w_IO.T))
    else:
        y_NO = jnp.einsum("ni,io->no", x_NI, w_IO)
    return y_NO.reshape(*outer, *out)


def inner(eqn: str) -> int | None:
    """How many axes `eqn` contracts, when it is a plain product [outer, inner] x [inner, out] -> [outer, out]; else None."""
    terms, _, result = eqn.replace(" ", "").partition("->")
    x, _, w = terms.partition(",")
    n = sum(letter in x for letter in w)
    plain = 0 < n < len(x) and x.endswith(w[:n]) and result == x[:-n] + w[n:] and "." not in eqn and len(set(x)) == len(x)
    return n if plain else None
