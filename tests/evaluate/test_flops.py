"""FLOPs against hand formulas and against XLA where it counts right; state sizes; turns."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxeff
from jaxeff.evaluate.decoding import Decoding, state_bytes
from jaxeff.evaluate.flops import flops, memory
from jaxeff.evaluate.timing import alternate, seconds
from jaxeff.mixers.gqa import GQA
from jaxeff.mixers.mlp import MLP
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.stack import Stage


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def test_matrix_products_and_elements_by_hand():
    found = flops(lambda a, b: jnp.sum(jnp.tanh(a @ b)), shape(3, 5), shape(5, 7))
    assert found == {"total": 2 * 3 * 5 * 7 + 21 + 21, "matmul": 2 * 3 * 5 * 7, "uncounted": 0}


def test_batched_products_count_the_batch_once():
    assert (
        flops(functools.partial(jnp.einsum, "bij,bjk->bik"), shape(4, 3, 5), shape(4, 5, 7))["matmul"]
        == 4 * 2 * 3 * 5 * 7
    )


def test_ragged_products_count_each_row_once():
    x, w, sizes = shape(30, 5), shape(4, 5, 7), shape(4, dtype=jnp.int32)
    assert flops(jax.lax.ragged_dot, x, w, sizes) == {"total": 2 * 30 * 5 * 7, "matmul": 2 * 30 * 5 * 7, "uncounted": 0}
    both = jax.grad(lambda x, w, sizes: jnp.sum(jax.lax.ragged_dot(x, w, sizes) ** 2), argnums=(0, 1))
    assert flops(both, x, w, sizes)["matmul"] == 3 * 2 * 30 * 5 * 7


def test_a_scan_counts_every_turn_and_a_conditional_its_dearest_branch():
    def scanned(a):
        return jax.lax.scan(lambda x, _: (x @ a, None), a, None, length=6)[0]

    assert flops(scanned, shape(4, 4))["total"] == 6 * 2 * 64
    nested = flops(jax.jit(lambda a: jax.lax.map(scanned, a)), shape(3, 4, 4))
    assert nested["matmul"] == 18 * 2 * 64
    branch = flops(lambda p, a: jax.lax.cond(p, lambda a: a @ a, lambda a: a, a), shape(dtype=bool), shape(4, 4))
    assert branch["total"] == 2 * 64


def test_a_loop_of_unknown_length_is_reported():
    found = flops(lambda n, a: jax.lax.fori_loop(0, n, lambda _, x: x @ a, a), shape(dtype=jnp.int32), shape(4, 4))
    assert found["uncounted"] == 1
    assert found["matmul"] == 2 * 64


def test_gradient_of_a_dense_layer_is_three_products():
    found = flops(jax.grad(lambda w, x: jnp.sum((x @ w) ** 2), argnums=(0, 1)), shape(8, 16), shape(32, 8))
    assert found["matmul"] == 3 * 2 * 32 * 8 * 16


def model(scan, **sizes):
    return LM(64, 32, (Stage((Block(GQA(n_heads=4, n_kv_heads=2), MLP(d_hidden=48)),), 3),), scan=scan, **sizes)


def loss(lm, params, tokens):
    return jnp.mean(jnp.log(jnp.sum(jnp.exp(lm.apply(params, tokens).y), -1)))


def test_a_scanned_model_costs_what_the_unrolled_one_does():
    params, tokens = jaxeff.abstract(model(True).specs()), shape(2, 16, dtype=jnp.int32)
    scanned, unrolled = (
        flops(jax.grad(functools.partial(loss, model(scan))), params, tokens) for scan in (True, False)
    )
    assert scanned["matmul"] == unrolled["matmul"]
    assert scanned["total"] == pytest.approx(unrolled["total"], rel=0.01)


def test_forward_products_follow_the_hand_formula():
    lm, b, t = model(True), 2, 16
    n_matrix = 3 * (32 * 4 * 8 * 2 + 32 * 2 * 8 * 2 + 3 * 32 * 48)
    dense = 2 * b * t * (n_matrix + 64 * 32)
    attention = 3 * 2 * 2 * b * t * t * 32
    found = flops(functools.partial(lm.apply), jaxeff.abstract(lm.specs()), shape(b, t, dtype=jnp.int32))["matmul"]
    # A blockwise form may leave out what lies above the diagonal, at most half of attention.
    assert dense + attention / 2 <= found <= dense + attention


def test_xla_agrees_where_there_is_no_loop():
    def mlp(params, x):
        for w in params:
            x = x + jax.nn.silu(x @ w) @ w.T
        return jnp.sum(x**2)

    step = jax.grad(mlp)
    args = [shape(64, 128)] * 3, shape(96, 64)
    theirs = jax.jit(step).lower(*args).compile().cost_analysis()["flops"]
    assert flops(step, *args)["total"] == pytest.approx(theirs, rel=0.02)


def test_xla_agrees_on_a_whole_unrolled_model():
    plain = LM(
        64, 32, (Stage((Block(GQA(n_heads=4, n_kv_heads=2, impl="reference"), MLP(d_hidden=48)),), 2),), scan=False
    )
    step = jax.grad(functools.partial(loss, plain))
    args = jaxeff.abstract(plain.specs()), shape(2, 32, dtype=jnp.int32)
    theirs = jax.jit(step).lower(*args).compile().cost_analysis()["flops"]
    assert flops(step, *args)["total"] == pytest.approx(theirs, rel=0.1)


def test_memory_of_a_compiled_program():
    """The [128, 128] product lives between two operations that cannot be fused."""
    compiled = jax.jit(lambda a: jnp.linalg.cholesky(a @ a.T + jnp.eye(128)).sum()).lower(shape(128, 4)).compile()
    found = memory(compiled)
    assert found["arguments"] == 128 * 4 * 4 and found["outputs"] == 4
    assert 128 * 128 * 4 <= found["temporary"] <= 8 * 128 * 128 * 4


def test_state_grows_with_context_for_attention_only():
    attention = LM(64, 32, (Stage(("mha",), 2),))
    linear = LM(64, 32, (Stage(("linear",), 2),))
    assert state_bytes(attention, 256) > 1.9 * state_bytes(attention, 128)
    assert state_bytes(linear, 256) == state_bytes(linear, 128)
    assert state_bytes(attention, 128) >= 2 * 2 * 128 * 32 * 4


def test_decoding_runs_and_knows_its_state():
    lm = LM(16, 8, (Stage((Block(GQA(n_heads=1, head_dim=8), None),), 1),), max_positions=32)
    params = jaxeff.init(lm.specs(), jax.random.key(0))
    decoding = Decoding(lm, params, context=8, n_tokens=2)
    assert seconds(decoding.first_token) > 0 and seconds(decoding.further_tokens) > 0
    assert decoding.state_bytes == state_bytes(lm, 8)
    with pytest.raises(ValueError, match="max_positions=32"):
        Decoding(lm, params, context=40)


def test_turns_alternate_and_leave_the_first_round_out():
    order, rounds = [], []
    clocks = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    times = alternate(clocks, rounds=2, warmup=1, on_round=rounds.append)
    assert order == ["a", "b"] * 3 and rounds == [0, 1, 2]
    assert times == {"a": [3, 5], "b": [4, 6]}
