"""Any mixer, Block or LM as a module of Flax NNX. B batch, T time, D model.

    mixer = as_nnx(GQA(256), rngs=nnx.Rngs(0))
    y_BTD = mixer(x_BTD)                        # training: no state
    mixer.init_state(batch, max_len=64)
    y_BTD = mixer(x_BTD, decode=True)           # prefill
    y_B1D = mixer(x_B1D, decode=True)           # a decode step

Parameters carry the logical names of their axes; `jaxeff.core.sharding.RULES` is a table of rules for them that
`nnx.logical_axis_rules` takes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxeff.core.spec import init
from jaxeff.interop.named import named, unnamed
from jaxeff.mixers.base import Ctx, Out


class Jaxeff(nnx.Module):
    """A jaxeff mixer, Block or LM, `part`; its methods take x_BTD, or tokens_BT for an LM.

    Variables: `nnx.Param`s by the names of `part.specs()`, whose metadata `out_sharding` are their logical axes; under `cache`,
    after `init_state`, the decode state as `nnx.Cache`s. decode: whether calls go on from the state unless they say otherwise.
    Raises ValueError for a part with a parameter that is called like something of a module.
    """

    def __init__(self, part, *, rngs: nnx.Rngs, param_dtype=jnp.float32, decode: bool = False):
        self.part, self.decode = part, decode
        self.cache = nnx.data(None)
        specs = part.specs()
        boxed = jax.tree.map(_param, specs, init(specs, rngs.params(), param_dtype))
        for name, params in boxed.items():
            if hasattr(self, name):
                raise ValueError(f"{type(part).__name__} has a parameter {name!r}, which names something of the module")
            setattr(self, name, _dicts(params, lambda param: param))

    def __call__(
        self, x: jax.Array, ctx: Ctx | None = None, *, decode: bool | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """y of `out`, which see."""
        return self.out(x, ctx, decode=decode, rngs=rngs).y

    def out(
        self, x: jax.Array, ctx: Ctx | None = None, *, decode: bool | None = None, rngs: nnx.Rngs | None = None
    ) -> Out:
        """The whole `Out`: y, the new state, shared values for later layers, aux, which `nnx.capture` finds as `nnx.Intermediate`s.

        ctx: positions, segment ids, `shared` values of earlier layers. decode: go on from the state in `cache`, and leave the new
        one there. rngs: its stream `dropout` turns dropout on. Raises ValueError where decoding finds no state.
        """
        ctx = Ctx() if ctx is None else ctx
        if ctx.key is None and rngs is not None:
            ctx = dataclasses.replace(ctx, key=rngs.dropout())
        decode = self.decode if decode is None else decode
        params = {name: _values(getattr(self, name)) for name in self.part.specs()}
        out = self.part.apply(params, x, self._state(x.shape[0]) if decode else None, ctx=ctx)
        if decode:
            _write(self.cache, named(out.state))
        if hasattr(self, "__captures__"):  # elsewhere `sow` is deprecated
            for name, value in out.aux.items():
                self.sow(nnx.Intermediate, name, value)
        return out

    def init_state(self, batch: int, max_len: int, dtype=jnp.float32) -> None:
        """Makes an empty decode state, or empties it, for texts of at most `max_len` tokens."""
        self.cache = nnx.data(_dicts(named(self.part.init_state(batch, max_len, dtype)), nnx.Cache))

    def _state(self, batch: int):
        """The decode state of this many texts, as the part has it. Raises ValueError before `init_state`."""
        if self.cache is None:
            raise ValueError("decoding begins without a state: call init_state(batch, max_len) first")
        return unnamed(_values(self.cache), jax.eval_shape(lambda: self.part.init_state(batch, 1, jnp.float32)))


def as_nnx(part, *, rngs: nnx.Rngs, param_dtype=jnp.float32, decode: bool = False) -> Jaxeff:
    """An NNX module of any mixer, Block or LM. rngs: its stream `params` starts the parameters, of `param_dtype`."""
    return Jaxeff(part, rngs=rngs, param_dtype=param_dtype, decode=decode)


def _param(spec, value) -> nnx.Param:
    """The logical names are no mesh axes, so nothing is laid out by them at once."""
    return nnx.Param(value, out_sharding=spec.axes, eager_sharding=False)


def _dicts(tree, leaf: Callable[[Any], nnx.Variable]):
    """Nested dicts as NNX has them, with `leaf(x)` in place of each x."""
    return nnx.Dict({k: _dicts(v, leaf) for k, v in tree.items()}) if isinstance(tree, dict) else leaf(tree)


def _values(node):
    """Nested dicts of the values of variables."""
    if isinstance(node, nnx.Dict):
        return {name: _values(child) for name, child in node.items()}
    return node.get_value() if isinstance(node, nnx.Variable) else node


def _write(node, values) -> None:
    """New values for variables."""
    if isinstance(node, nnx.Dict):
        for name, child in node.items():
            _write(child, values[name])
    else:
        node.set_value(values)
