"""A jaxeff mixer, Block or LM as a Haiku module. B batch, T time, D model.

    f = hk.transform(lambda x_BTD: as_haiku(GQA(d_model=256))(x_BTD))
    params = f.init(rng, x_BTD)                                 # {"gqa": {"q": ..., "k": ..., "v": ..., "o": ...}}

A module's parameters are named by their paths, `params["block"]["mixer/q"]`. With `decode=True, max_len=...` the decode state is
Haiku's, by path too: `hk.transform_with_state` then threads it from call to call. Haiku takes plain arrays only: weights that
a transform made into nodes are merged first, or given to `part.apply`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec, init
from jaxeff.core.tree import map_with_path
from jaxeff.mixers.base import Ctx, Out

try:
    import haiku as hk
except ImportError as error:
    raise UserError("jaxeff.interop.haiku needs Haiku: pip install 'jaxeff[haiku]'") from error


class Layer(hk.Module):
    """`part` as a module; made by `as_haiku`."""

    def __init__(self, part, name: str, max_len: int | None, dtype):
        super().__init__(name=name)
        self.part, self.max_len, self.dtype = part, max_len, dtype

    def __call__(self, x: jax.Array, *, is_training: bool = False, ctx: Ctx = Ctx()) -> jax.Array:
        """y [B, T, D] for x [B, T, D]; for a language model, logits for tokens [B, T].

        is_training: whether dropout draws from `hk.next_rng_key()`. Without, nothing is dropped and no key is needed.
        """
        return self.out(x, is_training=is_training, ctx=ctx).y

    def out(self, x: jax.Array, state=None, *, is_training: bool = False, ctx: Ctx = Ctx()) -> Out:
        """All that `part.apply` returns. state: a decode state in the caller's care, of a module that keeps none.

        Raises UserError when a module that decodes gets one, ValueError when its own is for another batch.
        """
        if is_training:
            ctx = dataclasses.replace(ctx, key=hk.next_rng_key())
        if self.max_len is None:
            return self.part.apply(self.params(), x, state, ctx=ctx)
        if state is not None:
            raise UserError(f"{self.name} keeps its decode state in Haiku's: make it without decode=True to pass one")
        out = self.part.apply(self.params(), x, self._state(x, ctx), ctx=ctx)
        map_with_path(hk.set_state, out.state)
        return out

    def params(self):
        """The parameters, nested as `part.apply` takes them."""
        # Drawn once, and only where a value is missing: applying needs no key.
        key = functools.cache(hk.next_rng_key)

        def one(path: str, spec: Spec) -> jax.Array:
            def initial(shape, dtype):
                return init({path: spec}, key(), dtype)[path]

            return hk.get_parameter(path, spec.shape, spec.dtype or self.dtype, initial)

        return map_with_path(one, self.part.specs())

    def _state(self, x: jax.Array, ctx: Ctx):
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.dtype(ctx.policy.compute)
        empty = self.part.init_state(x.shape[0], self.max_len, dtype)
        return map_with_path(lambda path, leaf: hk.get_state(path, leaf.shape, leaf.dtype, lambda *_: leaf), empty)


def as_haiku(
    part, name: str | None = None, *, decode: bool = False, max_len: int | None = None, dtype=jnp.float32
) -> Layer:
    """`part`, a mixer of known width, a Block or an LM, as a Haiku module: call it inside `hk.transform`.

    name: of the module, the lower-case name of part's class if None. decode: whether every call goes on from the call before,
    for texts of at most `max_len` tokens; `init` gives the empty state, for the batch of its x. dtype: of the parameters, whose
    initial values are those of `jaxeff.init(part.specs(), key, dtype)` with one `hk.next_rng_key()`.
    Raises UserError when only one of `decode` and `max_len` is given.
    """
    if decode != (max_len is not None):
        raise UserError(
            "as_haiku decodes with decode=True and max_len, the length of the longest text: give both or none"
        )
    return Layer(part, name or type(part).__name__.lower(), max_len, dtype)


def nested(part, params: Mapping[str, Any]):
    """The parameters of one module, `params["lm"]`, nested as `part.apply` and jaxeff's functions take them.

    `jaxeff.core.tree.paths` is the way back.
    """
    return map_with_path(lambda path, _: params[path], part.specs())
