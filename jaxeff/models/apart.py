"""A model whose repeated layers are taken apart, for decoding on a CPU: there a loop over stacked weights copies each layer's
before it multiplies one token by them, which takes as long as the product itself."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxeff.models.lm import LM
from jaxeff.models.stack import Stage

DEEPEST = 16  # layers; more compile for longer than they save
FEWEST = 32  # tokens, likewise


def apart(lm: LM, params, tokens: int) -> tuple[LM, Any]:
    """(the model with a stage for each layer, its parameters in the same memory), where that is worth while for so many tokens,
    else both as they are: on other devices, for deep models, and where a repeated block shares values, as these would live on."""
    leaves = jax.tree.leaves(params["blocks"])
    here = all(
        isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and len(x.devices()) == 1 for x in leaves
    )
    if not here or any(device.platform != "cpu" for x in leaves for device in x.devices()):
        return lm, params
    if lm.n_layers > DEEPEST or tokens < FEWEST or not any(place.repeats > 1 for place in lm.stack):
        return lm, params
    if any(getattr(part, "writes", ()) for place in lm.stack for part in place.block.parts.values()):
        return lm, params
    entries = [entry for stage in lm.stages for _ in range(stage.repeats) for entry in stage.pattern]
    layers = dataclasses.replace(lm, stages=tuple(Stage((entry,)) for entry in entries))
    own = {}
    for place in lm.stack:
        if place.tied is None:
            for repeat in range(place.repeats):
                own[_layer(place, repeat)] = jax.tree.map(lambda x: _entry(x, repeat), params["blocks"][str(place.i)])  # noqa: B023
    return layers, params | {"blocks": own}


def state_apart(lm: LM, state) -> Any:
    """The state of `lm` for the model that `apart` makes of it."""
    states = {name: value for name, value in state.items() if not name.isdecimal()}
    for place in lm.stack:
        for repeat in range(place.repeats):
            states[_layer(place, repeat)] = jax.tree.map(lambda x: x[repeat : repeat + 1], state[str(place.i)])  # noqa: B023
    return states


def _layer(place, repeat: int) -> str:
    return str(place.depth + place.step * repeat)


def _entry(stacked: jax.Array, i: int) -> jax.Array:
    """Entry i, [1, ...], in the memory of the whole where its start is aligned as a CPU device needs it."""
    return jax.device_put(np.asarray(stacked)[i : i + 1], stacked.sharding)
