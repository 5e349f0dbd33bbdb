"""Products of activations with weights, in the form that XLA compiles best. N rows of x, I inputs, O outputs of w.

XLA's CPU backend has a fast matrix product for operands that lie row by row, and falls far behind it in the gradient with
respect to a weight: activations of rank 3 become a pair of transposed operands (half the speed); so does a gradient [I, O]
with I > O, whose large operand is read against its rows (two thirds); and in 16 bits it is fast only with a float32 result
(half the speed otherwise). So here x is flattened to [N, I]; float32 gradients with I > O are formed as [O, I] and turned;
16-bit ones are formed from a turned copy of x, in float32, which also spares a float32 master weight a rounding of its
gradient. A turned copy is held in place by `row_major`, else the compiler folds it back into the product. Measured at
D 256, F 1024: 5.5 ms a product and core where the plain form takes 10, in bfloat16 3 ms.

Other backends choose layouts themselves and get the plain einsum.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from jaxeff.core.target import platform

MIN_ROWS = 64  # with fewer rows (decoding) the product is as cheap as a copy of the weight


def einsum(eqn: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """`jnp.einsum(eqn, x, w.astype(x.dtype))`."""
    n_in = inner(eqn)
    rows = math.prod(x.shape[: x.ndim - (n_in or 0)])
    if n_in is None or platform() != "cpu":
        return jnp.einsum(eqn, x, w.astype(x.dtype))
    if rows < MIN_ROWS:
        return few(x, w, n_in)
    return (half if x.dtype in (jnp.bfloat16, jnp.float16) else full)(x, w, n_in)


def inner(eqn: str) -> int | None:
    """How many axes `eqn` contracts, when it is a plain product [outer, inner] x [inner, out] -> [outer, out]; else None."""
    terms, _, result = eqn.replace(" ", "").partition("->")
    x, _, w = terms.partition(",")
    n = sum(letter in x for letter in w)
    plain = (
        0 < n < len(x) and x.endswith(w[:n]) and result == x[:-n] + w[n:] and "." not in eqn and len(set(x)) == len(x)
    )
    return n if plain else None


def row_major(x: jax.Array) -> jax.Array:
    """x, laid out row by row in memory."""
    return with_layout_constraint(jnp.asarray(x), Layout(tuple(range(x.ndim))))


def matrices(x: jax.Array, w: jax.Array, n_in: int) -> tuple[jax.Array, jax.Array]:
    """(x_NI, w_IO) in x's dtype."""
    w_IO = w.astype(x.dtype).reshape(math.prod(w.shape[:n_in]), -1)
    return x.reshape(-1, w_IO.shape[0]), w_IO


def few(x: jax.Array, w: jax.Array, n_in: int) -> jax.Array:
    """The same for few rows: x is brought into the order of the weight's inputs, else the compiler reorders the weight."""
    x_NI, w_IO = matrices(x, w, n_in)
    y_NO = row_major(x_NI) @ w_IO
    return y_NO.reshape(*x.shape[: x.ndim - n_in], *w.shape[n_in:])


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(2,))
def full(x: jax.Array, w: jax.Array, n_in: int) -> jax.Array:
    """x [outer, inner] times w [inner, out], `n_in` inner axes. Differentiable to any order in either mode.

    The checkpoint keeps x and w for the backward pass and not their rearranged copies, which a scan over layers would stack.
    """
    x_NI, w_IO = matrices(x, w, n_in)
    if w_IO.shape[0] > w_IO.shape[1]:
        y_NO = jnp.einsum("ni,oi->no", x_NI, row_major(row_major(w_IO).T))
    else:
        y_NO = jnp.einsum("ni,io->no", x_NI, w_IO)
    return y_NO.reshape(*x.shape[: x.ndim - n_in], *w.shape[n_in:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def half(x: jax.Array, w: jax.Array, n_in: int) -> jax.Array:
    """The same for 16-bit x and w of any dtype; sums in float32. Reverse mode only."""
    y_NO = jnp.matmul(*matrices(x, w, n_in), preferred_element_type=jnp.float32)
    return y_NO.astype(x.dtype).reshape(*x.shape[: x.ndim - n_in], *w.shape[n_in:])


def half_forward(x, w, n_in):
    """(y, residuals)."""
    return half(x, w, n_in), (x, w)


def half_backward(n_in, residuals, dy):
    """(dx in x's dtype, dw in w's)."""
    x, w = residuals
    x_NI, w_IO = matrices(x, w, n_in)
    dy_NO = dy.reshape(-1, w_IO.shape[1])
    dx_NI = jnp.einsum("no,io->ni", dy_NO, w_IO, preferred_element_type=jnp.float32)
    dw_IO = jnp.matmul(row_major(x_NI.T), dy_NO, preferred_element_type=jnp.float32)
    return dx_NI.astype(x.dtype).reshape(x.shape), dw_IO.astype(w.dtype).reshape(w.shape)


half.defvjp(half_forward, half_backward)
