"""Temporary memory of attention and its gradients, as the compiler plans it.

B batch, T time, H query heads, K kv heads, C head dim.
"""

import jax
import jax.numpy as jnp

from jaxeff.bench.record import record
from jaxeff.ops.attention import attention, attention_reference

MIB = 2**20


def attention_memory(time: int = 8192, heads: int = 8, kv_heads: int = 2, head_dim: int = 32) -> dict:
    """Temporary bytes of causal attention and its gradients, against the form that holds all T x T scores.

    Both are compiled, neither is run: the figure is the compiled program's own analysis, exact and the same every time.
    """
    naive = temporary_bytes(attention_reference, time, heads, kv_heads, head_dim)
    ours = temporary_bytes(attention, time, heads, kv_heads, head_dim)
    rows = [{"form": "attention_reference", "MiB": naive / MIB}, {"form": "attention", "MiB": ours / MIB}]
    return record(
        "attention-memory",
        ours=ours / MIB,
        peer=naive / MIB,
        unit="MiB",
        ratio=naive / ours,
        rows=rows,
        meaning="memory of the naive form over ours, forward and backward; more is better",
        time=time,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )


def temporary_bytes(f, time: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Peak temporary bytes of the gradients of `f` with respect to queries, keys and values."""
    q_BTHC = jax.ShapeDtypeStruct((1, time, heads, head_dim), jnp.float32)
    k_BTKC = jax.ShapeDtypeStruct((1, time, kv_heads, head_dim), jnp.float32)
    gradients = jax.grad(lambda q, k, v: jnp.sum(f(q, k, v, causal=True)), argnums=(0, 1, 2))
    return jax.jit(gradients).lower(q_BTHC, k_BTKC, k_BTKC).compile().memory_analysis().temp_size_in_bytes
