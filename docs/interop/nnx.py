"""jaxeff's layers in Flax NNX: a small language model, trained and then decoded, and LoRA on a model of NNX's own."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxeff.core.tree import combine, partition
from jaxeff.interop.nnx import as_nnx
from jaxeff.mixers import GLA, GQA
from jaxeff.models import Block
from jaxeff.transforms import LoRA, specs_of

STEPS, KEY, RNGS = 50, jax.random.key(0), nnx.Rngs(0)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.head = nnx.Embed(10, 32, rngs=rngs), nnx.Linear(32, 10, rngs=rngs)
        self.blocks = nnx.List(as_nnx(Block(mixer).bind(32), rngs=rngs) for mixer in (GQA(n_heads=2), GLA(n_heads=2)))

    def __call__(self, tokens, decode=False):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, decode=decode)
        return self.head(x)


def fit(model, loss):
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    return [float(step(model, optimizer)) for _ in range(STEPS)]


model, tokens = Model(RNGS), jnp.tile(jnp.array([[3, 1, 4, 1, 5, 9, 2, 6]]), (4, 4))
nll = optax.softmax_cross_entropy_with_integer_labels
losses = fit(model, lambda model: nll(model(tokens[:, :-1]), tokens[:, 1:]).mean())

decode, text = nnx.jit(lambda model, x: model(x, decode=True)[:, -1:].argmax(-1)), [tokens[:1, :8]]
for block in model.blocks:
    block.init_state(batch=1, max_len=64)
for _ in range(4):
    text.append(decode(model, text[-1]))  # the first call reads the prompt, each of the others one token

# LoRA on two layers of NNX's own: only the adapters are trained.
graph, state = nnx.split(nnx.Sequential(nnx.Linear(16, 32, rngs=RNGS), nnx.relu, nnx.Linear(32, 16, rngs=RNGS)))
x, params = jax.random.normal(KEY, (64, 16)), nnx.to_pure_dict(state)
plan = LoRA(("layers/./kernel",), rank=4).plan(specs_of(params))
kept, frozen = partition(plan.lift(params, KEY), lambda path, leaf: plan.trains(path))
adapters, tree = nnx.List(map(nnx.Param, jax.tree.leaves(kept))), jax.tree.structure(kept)
merged = lambda adapters: plan.merge(combine(tree.unflatten(p.get_value() for p in adapters), frozen))
adapted = fit(adapters, lambda adapters: optax.l2_loss(nnx.merge(graph, merged(adapters))(x), x[:, ::-1]).mean())
print(f"loss {losses[-1]:.4f}, text goes on with {jnp.concatenate(text[1:], 1)[0]}, with LoRA {adapted[-1]:.3f}")
