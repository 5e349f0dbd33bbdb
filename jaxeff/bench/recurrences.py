"""The fast form of each recurrence against its own reference scan, in training. B batch (one), T time, H heads, C channels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxeff.bench.record import record
from jaxeff.evaluate.timing import alternate, seconds, summary
from jaxeff.ops.delta_rule import delta_rule, delta_rule_reference
from jaxeff.ops.diagonal_scan import diagonal_scan, diagonal_scan_reference
from jaxeff.ops.gated_linear import gated_linear, gated_linear_reference
from jaxeff.ops.selective_scan import selective_scan, selective_scan_reference
from jaxeff.ops.wkv import wkv, wkv_reference


def recurrences(time: int = 2048, heads: int = 4, head_dim: int = 64, rounds: int = 5) -> dict:
    """Milliseconds of forward and backward pass of each recurrence: the fast form, and the scan over time that defines it.

    Matrix recurrences have `heads` heads of `head_dim` key and value channels, the others heads x head_dim channels.
    """
    rows = []
    for name, (fast, reference, arguments) in cases(time, heads, head_dim).items():
        clocks = {form: _clock(f, arguments) for form, f in (("fast", fast), ("reference", reference))}
        times = summary(alternate(clocks, rounds))
        (ours, least), (scan, scan_least) = times["fast"], times["reference"]
        rows.append(
            {"recurrence": name, "fast ms": 1e3 * ours, "scan ms": 1e3 * scan, "ratio": scan / ours}
            | {"ratio of least": scan_least / least}
        )
    matrix = [row for row in rows if row["recurrence"].startswith(("gated_linear", "delta_rule"))]
    worst = min(matrix, key=lambda row: row["ratio of least"])
    return record(
        "recurrences",
        ours=worst["fast ms"],
        peer=worst["scan ms"],
        unit="ms",
        ratio=worst["ratio of least"],
        rows=rows,
        time=time,
        heads=heads,
        head_dim=head_dim,
        meaning="the reference scan's time over the fast form's, for the slowest matrix recurrence; more is better",
    )


def _clock(f: Callable, arguments) -> Callable[[], float]:
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a)[0])), argnums=tuple(range(len(arguments)))))
    return lambda: seconds(lambda: gradient(*arguments))


def cases(T: int, H: int, C: int):
    """name -> (fast form, reference, arguments)."""
    r = lambda seed, *shape: jax.random.normal(jax.random.key(seed), (1, T, *shape))
    q, k, v = (r(i, H, C) for i in range(3))
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    by_head, by_channel = (-jnp.exp(r(3, *shape)) for shape in ((H,), (H, C)))
    delta = (q, 0.5 * k, v, -0.5 * k, k)
    D, N = H * C, 16
    x, dt, a, b, c = r(4, D), jax.nn.softplus(r(5, D)), -jnp.exp(r(6, N)[0, :1] * jnp.ones((D, 1))), r(7, N), r(8, N)
    gated = (gated_linear, gated_linear_reference)
    ruled = (delta_rule, delta_rule_reference)
    return {
        "gated_linear, no gate": (*gated, (q, k, v)),
        "gated_linear, gate a head": (*gated, (q, k, v, by_head)),
        "gated_linear, gate a channel": (*gated, (q, k, v, by_channel)),
        "delta_rule, no gate": (*ruled, delta),
        "delta_rule, gate a head": (*ruled, (*delta, by_head)),
        "delta_rule, gate a channel": (*ruled, (*delta, by_channel)),
        "selective_scan": (selective_scan, selective_scan_reference, (x, dt, a, b, c)),
        "diagonal_scan": (diagonal_scan, diagonal_scan_reference, (-jnp.exp(r(9, D)), x)),
        "wkv": (wkv, wkv_reference, (r(10, D), x, -jnp.ones((D,)), jnp.ones((D,)))),
    }
