"""jaxeff's layers in Haiku: a small model learns to count and decodes, then LoRA adapts a model of Haiku's own layers."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from jaxeff.core.tree import combine, partition
from jaxeff.interop.haiku import as_haiku
from jaxeff.mixers import GQA, Mamba2
from jaxeff.transforms import LoRA, specs_of

STEPS, D, V, KEY = 30, 32, 8, jax.random.key(0)
texts, x = (jnp.arange(17)[None] + jnp.arange(V)[:, None]) % V, jax.random.normal(KEY, (64, D))


def model(tokens, **decoding):
    embed = hk.Embed(V, D)
    y = embed(tokens)
    y = y + as_haiku(GQA(D), **decoding)(y)
    y = y + as_haiku(Mamba2(D), **decoding)(y)
    return y @ embed.embeddings.T / D


def train(params, loss):
    tx, losses = optax.adam(1e-2), []
    state = tx.init(params)
    gradient, update = jax.jit(jax.value_and_grad(loss)), jax.jit(tx.update)
    for _ in range(STEPS):
        value, grads = gradient(params)
        updates, state = update(grads, state)
        params, losses = optax.apply_updates(params, updates), [*losses, float(value)]
    return params, losses


def surprise(params):
    logits = reader.apply(params, texts[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, texts[:, 1:]).mean()


def distance(trained):
    return jnp.mean((theirs.apply(plan.merge(combine(trained, frozen)), x) - jnp.roll(x, 1, axis=1)) ** 2)


reader = hk.without_apply_rng(hk.transform(model))
writer = hk.transform_with_state(lambda tokens: model(tokens, decode=True, max_len=12))
params, state = jax.jit(writer.init)(KEY, jnp.array([[0]]))
params, losses = train(params, surprise)
step, text = jax.jit(writer.apply), [0]
for _ in range(11):
    logits, state = step(params, state, None, jnp.array([text[-1:]]))
    text.append(int(jnp.argmax(logits)))

theirs = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([64, D])(x)))
before = theirs.init(KEY, x)
plan = LoRA(("mlp/~/linear_./w",), rank=4).plan(specs_of(before))
trained, frozen = partition(plan.lift(before, KEY), lambda path, _: plan.trains(path))
_, adapted = train(trained, distance)
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, text {text}, adapted {adapted[0]:.3f} -> {adapted[-1]:.3f}")
