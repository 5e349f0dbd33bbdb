"""How many heads, and how wide: one derivation for all mixers that have heads."""

from jaxeff.mixers.base import width


def head_width(part) -> int:
    """C of a mixer with fields `d_model`, `n_heads`, `head_dim`: as given, or D / n_heads, or 32 below D = 512 and 64 from there.

    Raises ValueError when n_heads does not divide d_model and no head_dim is given.
    """
    d_model = width(part)
    if part.head_dim is not None:
        return part.head_dim
    if part.n_heads is None:
        return min(d_model, 32 if d_model < 512 else 64)
    if d_model % part.n_heads:
        raise ValueError(
            f"{type(part).__name__}.n_heads={part.n_heads} does not divide d_model={d_model}: choose a divisor or set head_dim"
        )
    return d_model // part.n_heads


def head_count(part) -> int:
    """H: `n_heads`, or as many heads as d_model holds."""
    return part.n_heads or max(1, width(part) // head_width(part))


def nearest_divisor(n: int, near: int) -> int:
    """The divisor of n nearest to `near`, the smaller of two: what an error proposes."""
    return min((i for i in range(1, n + 1) if n % i == 0), key=lambda i: (abs(i - near), i))
