"""A learned start in place of other weights: what the model has read before every text. P length, S slots, L repeats of a block.

    prompt   P embeddings stand before the text; the model reads them as it reads tokens       (Lester et al. 2021)
    prefix   the keys and values of S tokens stand in each attention's cache                   (Li and Liang 2021)
    state    the same, and the state of each recurrent mixer                                   (Peng et al. 2024, RWKV)

Nothing of the model changes: see `mixers.start`, where learned values become the state that texts begin with. A prefix begins as
the keys and values of S tokens drawn from the vocabulary, a recurrent state as the empty one.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.spec import LAYER, Normal, Spec, init, zeros
from jaxeff.core.tree import match, paths
from jaxeff.core.weight import take
from jaxeff.mixers.start import START, caches, learnable
from jaxeff.transforms.node import float_dtype, spec_of
from jaxeff.transforms.plan import Plan, within

PROMPT, STATE = "prompt", "state"


@dataclasses.dataclass(frozen=True)
class PromptTuning:
    """Embeddings that stand before every text; they alone train.

    length: P. init: "vocabulary", the embeddings of tokens drawn at random, or "normal", with standard deviation 0.02.

    `plan` raises UserError for Specs without `embed`, and where there is a prompt already; `merge` in any case, as nothing but a
    start can hold one.
    """

    length: int = 16
    init: Literal["vocabulary", "normal"] = "vocabulary"

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"PromptTuning.length must be at least 1, found {self.length}")
        if self.init not in ("vocabulary", "normal"):
            raise ValueError(f"PromptTuning.init must be 'vocabulary' or 'normal', found {self.init!r}")

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        if not isinstance(specs, dict) or "embed" not in specs:
            raise UserError("PromptTuning needs the Specs of a language model, with `embed`")
        spec = Spec((self.length, spec_of(specs["embed"]).shape[1]), (None, "embed"), Normal(0.02), n_in=0)

        def values(params, key):
            embed = params["embed"]
            if self.init == "normal":
                return init({f"{START}/{PROMPT}": spec}, key, float_dtype(embed))[f"{START}/{PROMPT}"]
            return take(embed, _drawn(specs, self.length, key)[0], float_dtype(embed))

        return _starting(specs, PROMPT, spec, values)


@dataclasses.dataclass(frozen=True)
class StateTuning:
    """The states that texts begin with, of the mixers that `rules` match, regexes on their paths; they alone train.

    slots: S, of each cache of attention. `plan` needs the model: chain(StateTuning()).plan(specs, model=model); it raises UserError
    for a rule that matches no mixer with a state, for caches of fewer slots, and where there is a learned state already; `merge` in
    any case.
    """

    rules: tuple[str, ...] = ("blocks/.*",)
    slots: int = 16

    needs_model: ClassVar[bool] = True
    _what: ClassVar[str] = "a state"

    def __post_init__(self):
        if self.slots < 1:
            raise ValueError(f"{type(self).__name__}.slots must be at least 1, found {self.slots}")

    def learned(self, state) -> dict[str, tuple[int, ...]]:
        """path -> shape of what rules may match, in a stack's state."""
        return learnable(state, self.slots)

    def plan(self, specs, model=None) -> Plan:
        """See `transforms.plan.Plan`."""
        name = type(self).__name__
        if model is None:
            raise UserError(
                f"{name} needs the model whose states it learns: chain({name}(...)).plan(specs, model=model)"
            )
        state = jax.eval_shape(lambda: model.init_state(1, self.slots + 1))
        shapes = self.learned(state)
        if not shapes:
            raise UserError(f"{name}: no mixer of this model has {self._what}")
        # A rule names mixers, `blocks/0/mixer`, not the leaves of their states.
        mixers = {path: "blocks/" + "/".join(path.split("/")[:2]) for path in shapes}
        chosen = match(self.rules, dict.fromkeys(mixers.values()), f"rule of {name}")
        shapes = {path: shape for path, shape in shapes.items() if mixers[path] in chosen}
        known = {path: cache for path, cache in caches(state).items() if any(p.startswith(f"{path}/") for p in shapes)}
        for path, cache in known.items():
            if cache.position.shape[2] < self.slots:
                raise UserError(
                    f"{name}: {self.slots} slots do not fit the window of blocks/{path}, {cache.position.shape[2]}"
                )
        declared = {
            path: Spec(shape, (LAYER, *(None,) * (len(shape) - 1)), zeros, n_in=0, n_stacked=1)
            for path, shape in shapes.items()
        }

        def values(params, key):
            dtype = float_dtype(params["embed"])
            found = {path: jnp.zeros(spec.shape, dtype) for path, spec in declared.items()}
            if known:
                read = paths(
                    model.hidden(params, _drawn(specs, self.slots, key), model.init_state(1, self.slots)).state
                )
                found |= {path: read[path][:, 0].astype(dtype) for path in found if "/values/" in path}
            return found

        return _starting(specs, STATE, declared, values)


@dataclasses.dataclass(frozen=True)
class PrefixTuning(StateTuning):
    """Keys and values that stand before every text, in the caches of the attention that `rules` match; they alone train.

    slots: S. Errors are those of `StateTuning`; a model without attention has nothing to learn here.
    """

    _what: ClassVar[str] = "a cache; StateTuning learns recurrent states"

    def learned(self, state) -> dict[str, tuple[int, ...]]:
        """Those of caches."""
        return {path: shape for path, shape in learnable(state, self.slots).items() if "/values/" in path}


def _drawn(specs, n: int, key: jax.Array) -> jax.Array:
    """Tokens of the vocabulary at random, [1, n]."""
    return jax.random.randint(jax.random.fold_in(key, n), (1, n), 0, spec_of(specs["embed"]).shape[0])


def _starting(specs, part: str, declared: Any, values) -> Plan:
    """The plan of a method that adds a part to the start. values(params, key): those that it begins with."""
    before = specs.get(START, {})
    if part in before:
        raise UserError(f"there is a learned {part} already: one is enough")

    def lift(params, key):
        return params | {START: params.get(START, {}) | {part: values(params, key)}}

    def merge(params):
        raise UserError(f"a learned {part} is no weight of the model: it cannot be merged")

    return Plan(specs | {START: before | {part: declared}}, lift, merge, adapters=within([f"{START}/{part}"]))
