"""A jaxeff mixer, Block or LM as an Equinox module. B batch, T time, D model.

    layer = as_equinox(GQA(d_model=256), key=jax.random.key(0))
    y_TD = layer(x_TD)                                          # one sequence, as Equinox's own layers; jax.vmap for more
    y_BTD = layer(x_BTD)                                        # or a whole batch
    out = layer.out(x_TD, layer.init_state(max_len=128))        # decoding: out.y, out.state

The arrays are the nested dictionary `layer.params`, named as in `part.specs()`; everything else is static.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.core.spec import init
from jaxeff.interop.named import begun
from jaxeff.mixers.base import Ctx, Out

try:
    import equinox as eqx
except ImportError as error:
    raise UserError("jaxeff.interop.equinox needs Equinox: pip install 'jaxeff[equinox]'") from error


class Layer(eqx.Module):
    """`part` with its parameters; made by `as_equinox`."""

    params: Any
    part: Any = eqx.field(static=True)

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """y for x [T, D] or [B, T, D], of x's rank; for a language model, logits for tokens [T] or [B, T].

        key: of dropout, None for none. Raises UserError for x of another rank.
        """
        return self.out(x, ctx=Ctx(key=key)).y

    def out(self, x: jax.Array, state=None, *, ctx: Ctx = Ctx()) -> Out:
        """All that `part.apply` returns, for x as above. state: one that `init_state` made or the `state` of the `Out` before.

        For one sequence, state, `shared` and `aux` are those of a batch of one, and positions and segment ids of `ctx` may be [T].
        Raises UserError for x of another rank.
        """
        rank = 1 if jnp.issubdtype(x.dtype, jnp.integer) else 2
        if x.ndim == rank + 1:
            return self.part.apply(self.params, x, state, ctx=ctx)
        if x.ndim != rank:
            shapes = "[T] or [B, T]" if rank == 1 else "[T, D] or [B, T, D]"
            raise UserError(f"{type(self.part).__name__} takes {x.dtype} of shape {shapes}, found {list(x.shape)}")
        out = self.part.apply(self.params, x[None], state, ctx=_of_one(ctx))
        return out._replace(y=out.y[0])

    def init_state(self, batch: int = 1, max_len: int = 1, dtype=jnp.float32):
        """The decode state that texts of at most `max_len` tokens begin with, a pytree of arrays: an empty one, or what a model has
        learned; one sequence is a batch of one."""
        return begun(self.part, self.params, batch, max_len, dtype)


def as_equinox(part, *, key: jax.Array | None = None, params=None, dtype=jnp.float32) -> Layer:
    """`part`, a mixer of known width, a Block or an LM, as an Equinox module.

    key: of initial values, which are those of `jaxeff.init(part.specs(), key, dtype)`; or params: values that exist already.
    Raises UserError unless exactly one of the two is given, ValueError for a mixer without a width.
    """
    if (key is None) == (params is None):
        raise UserError("as_equinox needs either a key, for initial values, or params")
    return Layer(init(part.specs(), key, dtype) if params is None else jax.tree.map(_array, params), part)


def _array(leaf):
    """NumPy's arrays as JAX's, which alone Equinox's filters differentiate."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _of_one(ctx: Ctx) -> Ctx:
    """ctx of one sequence, as that of a batch of one."""
    arrays = {name: getattr(ctx, name) for name in ("positions", "segment_ids")}
    return dataclasses.replace(ctx, **{name: x[None] for name, x in arrays.items() if x is not None and x.ndim == 1})
