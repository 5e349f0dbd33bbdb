"""jaxeff's layers in Equinox: a small model learns to count and decodes, then LoRA adapts a model of Equinox's own layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jaxeff.core.tree import combine, partition
from jaxeff.interop.equinox import as_equinox
from jaxeff.mixers import GQA, Mamba2
from jaxeff.transforms import LoRA, specs_of

STEPS, D, V, KEY = 30, 32, 8, jax.random.key(0)
texts, x = (jnp.arange(17)[None] + jnp.arange(V)[:, None]) % V, jax.random.normal(KEY, (64, D))


class Model(eqx.Module):
    embed: eqx.nn.Embedding = eqx.nn.Embedding(V, D, key=KEY)
    layers: tuple = (as_equinox(GQA(D), key=KEY), as_equinox(Mamba2(D), key=KEY))

    def __call__(self, tokens, states=(None, None)):
        y, after = jax.vmap(self.embed)(tokens), ()
        for layer, state in zip(self.layers, states, strict=True):
            out = layer.out(y, state)
            y, after = y + out.y, (*after, out.state)
        return y @ self.embed.weight.T / D, after

    def surprise(self):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(self)(texts[:, :-1])[0], texts[:, 1:]).mean()


def train(model, loss):
    tx, losses = optax.adam(1e-2), []
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    gradient, update = eqx.filter_jit(eqx.filter_value_and_grad(loss)), eqx.filter_jit(tx.update)
    for _ in range(STEPS):
        value, grads = gradient(model)
        updates, state = update(grads, state)
        model, losses = eqx.apply_updates(model, updates), [*losses, float(value)]
    return model, losses


def distance(trained):
    module = eqx.combine(plan.merge(combine(trained, frozen)), static)
    return jnp.mean((jax.vmap(module)(x) - jnp.roll(x, 1, axis=1)) ** 2)


model, losses = train(Model(), Model.surprise)
states, step, text = [layer.init_state(max_len=12) for layer in model.layers], eqx.filter_jit(model), [0]
for _ in range(11):
    logits, states = step(jnp.array(text[-1:]), states)
    text.append(int(jnp.argmax(logits)))

theirs, static = eqx.partition(eqx.nn.MLP(D, D, 64, 1, key=KEY), eqx.is_inexact_array)
plan = LoRA(("layers/./weight",), rank=4).plan(specs_of(theirs))
trained, frozen = partition(plan.lift(theirs, KEY), lambda path, _: plan.trains(path))
_, adapted = train(trained, distance)
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, text {text}, adapted {adapted[0]:.3f} -> {adapted[-1]:.3f}")
