"""Plans over other people's trees: plain dicts, a Linen module's variables, an NNX module's state, an Equinox module's arrays."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxeff.core.tree import combine, partition, paths
from jaxeff.transforms import NF4, LoRA, LowRank, chain, specs_of
from tests.closeness import assert_close

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (4, 6, 16))
TARGET = jnp.roll(X, 1, axis=1)


def adapted(params, rules, apply):
    """(loss before, loss after, the trained tree): ten steps of Adam on what a chain of NF4 and LoRA leaves to train."""
    plan = chain(NF4(rules), LoRA(rules, rank=4)).plan(specs_of(params))
    lifted = plan.lift(params, KEY)
    trained, frozen = partition(lifted, lambda path, leaf: plan.trains(path))
    assert all(path.endswith(("/a", "/b")) for path in paths(trained))

    def loss(trained):
        return jnp.mean(jnp.square(apply(plan.merge(combine(trained, frozen))) - TARGET))

    tx = optax.adam(1e-2)

    @jax.jit
    def step(trained, state):
        value, grads = jax.value_and_grad(loss)(trained)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, state = tx.update(grads, state)
        return optax.apply_updates(trained, updates), state, value

    losses, state = [], tx.init(trained)
    for _ in range(10):
        trained, state, value = step(trained, state)
        losses.append(float(value))
    return losses[0], losses[-1], combine(trained, frozen)


def test_a_plain_dict():
    r = np.random.default_rng(0)
    params = {name: jnp.asarray(0.2 * r.standard_normal((16, 16)), jnp.float32) for name in ("up", "down")}
    before, after, _ = adapted(
        params, ("up|down",), lambda p: jnp.einsum("btd,de->bte", jnp.einsum("btd,de->bte", X, p["up"]), p["down"])
    )
    assert after < before - 1e-3


def test_a_linen_module():
    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(16)(nn.relu(nn.Dense(32)(x)))

    with jax.numpy_rank_promotion("allow"):
        module = MLP()
        variables = module.init(KEY, X)
        before, after, trained = adapted(
            variables["params"], ("Dense_./kernel",), lambda p: module.apply({"params": p}, X)
        )
        assert after < before - 1e-3
        assert trained["Dense_0"]["kernel"].base.codes.dtype == jnp.uint8
        exact = LowRank((("Dense_0/kernel", 16),)).plan(specs_of(variables["params"]))
        there_and_back = exact.merge(exact.lift(variables["params"], KEY))
        assert_close(there_and_back, variables["params"], 1e-5)


def test_an_nnx_module():
    class MLP(nnx.Module):
        def __init__(self, rngs):
            self.up, self.down = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.up(x)))

    with jax.numpy_rank_promotion("allow"):
        graph, state = nnx.split(MLP(nnx.Rngs(0)))
        params = nnx.to_pure_dict(state)
        before, after, _ = adapted(params, ("(up|down)/kernel",), lambda p: nnx.merge(graph, p)(X))
    assert after < before - 1e-3


def test_an_equinox_module():
    class MLP(eqx.Module):
        up: eqx.nn.Linear
        down: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key)
            self.up, self.down = eqx.nn.Linear(16, 32, key=keys[0]), eqx.nn.Linear(32, 16, key=keys[1])

        def __call__(self, x):
            return self.down(jax.nn.relu(self.up(x)))

    arrays, static = eqx.partition(MLP(KEY), eqx.is_array)

    def apply(arrays):
        return jax.vmap(jax.vmap(eqx.combine(arrays, static)))(X)

    before, after, trained = adapted(arrays, ("(up|down)/weight",), apply)
    assert after < before - 1e-3
    assert isinstance(trained, MLP) and trained.up.weight.base.codes.dtype == jnp.uint8
    assert trained.down.bias.shape == (16,)
