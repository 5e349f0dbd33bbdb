"""The chunked form of the delta rule with one gate a head or none, in 16-bit products, for matrix units.

The equations are those of `ops.delta_rule`; here each chunk is one affine map of the state that enters it,

    S' = a S + D S + B        D = u^T (1 - w.u)^-1 w        B = u^T (1 - w.u)^-1 (w.k V) + k^T V

so that a single product stands in the loop over chunks; what tokens read of the states follows for all chunks at once. B batch,
T time, H heads, C and D key dim, E value dim, N chunks, I and J times within a chunk.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxeff.ops.decay import by_token, cut, decay


def by_sums(q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, log_a_BTH, reset_BT, state_BHCE, size: int):
    """(o_BTHE, state) in float32; factors of products are of v's type, sums and the state float32."""
    T, half = v_BTHE.shape[1], v_BTHE.dtype
    if reset_BT is not None:
        w_BTHC = jnp.where(reset_BT[:, :, None, None], 0.0, w_BTHC)
    q, k, v, u, w = (cut(x.astype(half), size) for x in (q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC))
    between, since, until = decay(jnp.zeros(v_BTHE.shape[:3]) if log_a_BTH is None else log_a_BTH, reset_BT, size)
    # Rows w read the state before their token.
    w_between = jnp.pad(between[..., :-1, :], ((0, 0),) * 3 + ((1, 0), (0, 0)))
    w_since = jnp.pad(since[..., :-1], ((0, 0),) * 3 + ((1, 0),), constant_values=1.0)

    def dot(form, *factors):
        return jnp.einsum(form, *(x.astype(half) for x in factors), preferred_element_type=jnp.float32)

    score = lambda rows, cols, weight: dot("bnihc,bnjhc->bnhij", rows, cols) * weight  # noqa: E731
    over = lambda weights, x: dot("bnhij,bnjhx->bnihx", weights, x).astype(half)  # noqa: E731
    scaled = lambda x, factor: x * by_token(factor).astype(half)  # noqa: E731
    inverse = unit_inverse(score(w, u, w_between))
    from_state, own = over(inverse, scaled(w, w_since)), over(inverse, over(score(w, k, w_between), v))
    u_end, k_end = scaled(u, until), scaled(k, until)
    D_NBHCD = dot("bnihc,bnihd->nbhcd", u_end, from_state).astype(half)
    B_NBHCE = dot("bnihc,bnihe->nbhce", u_end, own) + dot("bnihc,bnihe->nbhce", k_end, v)
    kept_NBH = jnp.moveaxis(since[..., -1], 1, 0)

    def carry(state_BHCE, chunk):
        D_BHCD, B_BHCE, kept_BH = chunk
        kept_BHCE = kept_BH[..., None, None] * state_BHCE
        return kept_BHCE + dot("bhcd,bhde->bhce", D_BHCD, state_BHCE) + B_BHCE, state_BHCE.astype(half)

    state_BHCE, entering_NBHCE = jax.lax.scan(carry, state_BHCE, (D_NBHCD, B_NBHCE, kept_NBH))
    read = lambda rows: dot("bnihc,nbhce->bnihe", rows, entering_NBHCE)  # noqa: E731
    p = read(from_state).astype(half) + own
    o = by_token(since) * read(q)
    for cols, x in ((u, p), (k, v)):
        o = o + dot("bnhij,bnjhe->bnihe", score(q, cols, between), x)
    return rearrange(o, "b n i h e -> b (n i) h e")[:, :T], state_BHCE


@jax.custom_vjp
def unit_inverse(A: jax.Array) -> jax.Array:
    """(1 - A)^-1 of strictly lower triangular A [..., I, I], float32: inverses of blocks on the diagonal joined to blocks twice as
    large, by whole products with what joins them."""
    size = A.shape[-1]
    i, j = jnp.arange(size)[:, None], jnp.arange(size)[None]
    X = jnp.broadcast_to(jnp.eye(size, dtype=A.dtype), A.shape)
    h = 1
    while h < size:
        crossing = jnp.where(((i // (2 * h) == j // (2 * h)) & (i // h != j // h))[(None,) * (A.ndim - 2)], A, 0.0)
        X = X + (crossing if h == 1 else jnp.matmul(X, jnp.matmul(crossing, X, precision="high"), precision="high"))
        h *= 2
    return X


def _inverse_forward(A):
    X = unit_inverse(A)
    return X, X


def _inverse_backward(X, dX):
    turned = jnp.swapaxes(X, -1, -2)
    return (turned @ dX @ turned,)


unit_inverse.defvjp(_inverse_forward, _inverse_backward)
