import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxeff.core.precision import POLICIES, Policy
from jaxeff.core.weight import Weight, dense, einsum, take


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Twice(Weight):
    """A node that stands for two times its base: `dense` is all that must be written."""

    base: jax.Array

    def dense(self, dtype):
        return 2 * dense(self.base, dtype)


W = jax.random.normal(jax.random.key(0), (6, 5))


def test_layers_cannot_tell_a_node_from_an_array():
    x, ids = jax.random.normal(jax.random.key(1), (3, 6)), jnp.array([0, 5, 2])
    assert jnp.allclose(einsum("bd,df->bf", x, Twice(W)), einsum("bd,df->bf", x, 2 * W))
    assert jnp.array_equal(take(Twice(W), ids, jnp.float32), 2 * W[ids])
    assert jnp.array_equal(dense(Twice(W), jnp.float32), 2 * W)


def test_the_activation_decides_the_compute_dtype():
    assert einsum("bd,df->bf", jnp.ones((3, 6), jnp.bfloat16), W).dtype == jnp.bfloat16
    assert take(W, jnp.array([1]), jnp.bfloat16).dtype == jnp.bfloat16


def test_gradients_pass_through_a_node():
    grads = jax.grad(lambda w: einsum("bd,df->bf", jnp.ones((3, 6)), w).sum())(Twice(W))
    assert isinstance(grads, Twice) and jnp.allclose(grads.base, 6.0)


def test_policies_name_real_dtypes():
    assert POLICIES["bfloat16"].param == "float32" and POLICIES["bfloat16"].compute == "bfloat16"
    with pytest.raises(TypeError):
        Policy(compute="float17")
