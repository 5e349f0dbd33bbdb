"""Any mixer, Block or LM as a module of Flax Linen. B batch, T time, D model.

    mixer = as_linen(GQA(256))
    variables = mixer.init(key, x_BTD)
    y_BTD = mixer.apply(variables, x_BTD)                                                   # training: no state
    y_BTD, cache = mixer.apply(variables, x_BTD, decode=True, max_len=64, mutable="cache")  # prefill
    y_B1D, cache = mixer.apply(variables | cache, x_B1D, decode=True, mutable="cache")      # a decode step

Axes of parameters have jaxeff's logical names; `jaxeff.core.sharding.RULES` is a table of rules for them that Linen takes.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze

from jaxeff.core.spec import init
from jaxeff.interop.named import begun, named, unnamed
from jaxeff.mixers.base import Ctx, Out


class Jaxeff(nn.Module):
    """A jaxeff mixer, Block or LM, `part`; its methods take x_BTD, or tokens_BT for an LM.

    Collections: `params`, by the names of `part.specs()`, in boxes with their logical axes; `cache`, the decode state;
    `intermediates`, what the part tells beside its output (`loss` among it is weighted already and belongs to the objective).
    The stream `params` starts the parameters; a stream `dropout` turns dropout on.
    """

    part: Any
    param_dtype: Any = jnp.float32

    def __call__(self, x: jax.Array, ctx: Ctx = Ctx(), decode: bool = False, max_len: int | None = None) -> jax.Array:
        """y of `out`, which see."""
        return self.out(x, ctx, decode, max_len).y

    @nn.compact
    def out(self, x: jax.Array, ctx: Ctx = Ctx(), decode: bool = False, max_len: int | None = None) -> Out:
        """The whole `Out`: y, the new state, shared values for later layers, aux.

        ctx: positions, segment ids, `shared` values of earlier layers. decode: go on from the state in `cache`, and leave the new
        one there; `init` leaves an empty one. max_len: how many tokens a state holds that is made by this call.
        Raises ValueError where decoding finds no state and no `max_len`.
        """
        params = _params(self)
        if ctx.key is None and self.has_rng("dropout"):
            ctx = dataclasses.replace(ctx, key=self.make_rng("dropout"))
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.dtype(ctx.policy.compute)
        state = _state(self, params, x.shape[0], max_len, dtype, ctx) if decode else None
        out = self.part.apply(params, x, state, ctx=ctx)
        for name, value in out.aux.items():
            self.sow("intermediates", name, value)
        if decode and not self.is_initializing():
            for name, value in named(out.state).items():
                self.put_variable("cache", name, value)
        return out


def as_linen(part, param_dtype=jnp.float32, name: str | None = None) -> Jaxeff:
    """A Linen module of any mixer, Block or LM. param_dtype: of the parameters it starts with."""
    return Jaxeff(part, param_dtype, name=name)


def _params(module: Jaxeff):
    """The parameters as they are there, started where they are not. A weight may have become a node of a transform."""
    for name, specs in module.part.specs().items():
        if not module.has_variable("params", name):
            module.param(name, _initial, name, specs, module.param_dtype)
    return unfreeze(nn.meta.unbox(dict(module.variables.get("params", {}))))


def _initial(key: jax.Array, name: str, specs, dtype):
    """Initial values of the parameters under one name, boxed."""
    values = init({name: specs}, key, dtype)[name]
    return jax.tree.map(lambda spec, value: nn.LogicallyPartitioned(value, spec.axes), specs, values)


def _state(module: Jaxeff, params, batch: int, max_len: int | None, dtype, ctx: Ctx):
    """The state in `cache`; where there is none yet, the one that texts begin with."""
    like = jax.eval_shape(lambda: module.part.init_state(batch, 1, dtype))
    names = named(like)
    if any(not module.has_variable("cache", name) for name in names):
        if max_len is None:
            raise ValueError("decoding begins without a cache: give max_len, the number of tokens it shall hold")
        first = begun(module.part, params, batch, max_len, dtype, ctx)
        for name, value in named(first).items():
            module.variable("cache", name, lambda value=value: value)
    return unnamed({name: module.get_variable("cache", name) for name in names}, like)
