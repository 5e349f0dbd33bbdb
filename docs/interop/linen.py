"""jaxeff's layers in Flax Linen: a small language model, trained and then decoded, and LoRA on a model of Linen's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from jaxeff.core.tree import combine, partition
from jaxeff.interop.linen import as_linen
from jaxeff.mixers import GLA, GQA
from jaxeff.transforms import LoRA, specs_of

STEPS, KEY = 50, jax.random.key(0)


class Model(nn.Module):
    @nn.compact
    def __call__(self, tokens, decode=False):
        x = nn.Embed(10, 32)(tokens)
        for mixer in (GQA(32, n_heads=2), GLA(32, n_heads=2)):
            x = x + as_linen(mixer)(nn.RMSNorm()(x), decode=decode, max_len=64)
        return nn.Dense(10)(nn.RMSNorm()(x))


def fit(apply, params, x, loss):
    state, losses = TrainState.create(apply_fn=apply, params=params, tx=optax.adam(1e-2)), []
    gradients = jax.jit(jax.value_and_grad(lambda params: loss(state.apply_fn(params, x))))
    update = jax.jit(lambda state, gradients: state.apply_gradients(grads=gradients))
    for _ in range(STEPS):
        value, found = gradients(state.params)
        state, losses = update(state, found), [*losses, float(value)]
    return state.params, losses


# Train. The boxes around parameters hold their logical axes, for a mesh; here is none.
model, tokens = Model(), jnp.tile(jnp.array([[3, 1, 4, 1, 5, 9, 2, 6]]), (4, 4))
params = nn.unbox(jax.jit(model.init)(KEY, tokens))["params"]
nll = lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
params, losses = fit(lambda params, x: model.apply({"params": params}, x), params, tokens[:, :-1], nll)

# Decode: the first call reads the prompt, each of the others one token.
decode = jax.jit(lambda variables, x: model.apply(variables, x, decode=True, mutable=["cache"]))
variables, text = {"params": params}, [tokens[:1, :8]]
for _ in range(4):
    logits, cache = decode(variables, text[-1])
    variables, text = variables | cache, [*text, logits[:, -1:].argmax(-1)]

# LoRA on two layers of Linen's own: only the adapters are trained.
net, x = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(16)]), jax.random.normal(KEY, (64, 16))
params = jax.jit(net.init)(KEY, x)["params"]
plan = LoRA(("layers_./kernel",), rank=4).plan(specs_of(params))
adapters, frozen = partition(plan.lift(params, KEY), lambda path, leaf: plan.trains(path))
apply = lambda adapters, x: net.apply({"params": plan.merge(combine(adapters, frozen))}, x)
adapters, adapted = fit(apply, adapters, x, lambda y: jnp.mean((y - jnp.roll(x, 1, axis=1)) ** 2))
print(f"loss {losses[-1]:.4f}, text goes on with {jnp.concatenate(text[1:], 1)[0]}, with LoRA {adapted[-1]:.3f}")
