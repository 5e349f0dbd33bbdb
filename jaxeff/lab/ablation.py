"""An ablation as a value: experiments that differ in one thing, and the protocol that compares them.

    def ablation() -> Ablation: ...          in configs/ablations/X.py
    jaxeff ablate configs/ablations/X.py     see `jaxeff.lab.run`

The first variant is the baseline: the others are matched to its number of parameters, and differences are taken to it.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.fields import check
from jaxeff.core.spec import count
from jaxeff.lab.matching import TOLERANCE, VARY, match
from jaxeff.models.block import Block
from jaxeff.models.stack import Stage, Tied
from jaxeff.train.config_file import returned
from jaxeff.train.experiment import Experiment
from jaxeff.train.overrides import replaced

# Fields that the protocol itself sets in every run, and by which of its own.
PROTOCOL = {"optim.lr": "lrs", "seed": "seeds", "data.seed": "seeds"}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of an ablation: the base with other values of some fields, each named as `--set` names it.

    Variant("muon", {"optim.name": "muon"})

    lrs: a sweep of its own, where other rates than those of the ablation come into question.
    """

    name: str
    changes: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    lrs: tuple[float, ...] | None = None

    def __post_init__(self):
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise UserError(
                f"a variant's name is made of letters, digits, - and _, as it names a folder; found {self.name!r}"
            )
        changes = self.changes.items() if isinstance(self.changes, Mapping) else self.changes
        object.__setattr__(self, "changes", tuple(changes))
        for path, _ in self.changes:
            if path in PROTOCOL:
                raise UserError(
                    f"variant {self.name!r} sets {path}, which the ablation's {PROTOCOL[path]} set for all variants"
                )


def stages(name: str, *pattern: Block | Tied | str) -> Variant:
    """The variant with another pattern of blocks in the base's first stage."""
    return Variant(name, {"model.stages.0.pattern": Stage(pattern).pattern})


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What is compared and how.

    base: everything that the models share, the length of the final runs included. lrs: the sweep, each rate tried for `sweep_steps`
    steps with the first seed. widen: how many more rates a variant may try, one after the other, while its best one lies at an end
    of its sweep; 0 for none, and a sweep of one rate is never widened. seeds: of the final runs; a seed sets the initial values and
    the order of the data. match: whether sizes are made equal, "parameters" within `tolerance`, or "none"; vary: a regular
    expression for the integer fields of the model that make up for differences, by default the width of every MLP. contexts,
    decode_tokens: where and how long decoding is timed; timing_rounds: how many turns each model gets. environment: variables that
    the config file reads, as they stand before the command that reproduces a row.

    bases: runs that variants start from, by names, which `{"base": "prose"}` refers to; each is trained once, before all else, as
    it is. others: data by names, on whose test split final models are scored too.

    Raises UserError for no variants, two of one name, no seeds, no learning rates, numbers out of range, and contexts longer
    than the model's positions.
    """

    name: str
    base: Experiment
    variants: tuple[Variant, ...]
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    sweep_steps: int = 100
    widen: int = 3
    match: Literal["parameters", "none"] = "parameters"
    tolerance: float = TOLERANCE
    vary: str = VARY
    contexts: tuple[int, ...] = (256, 1024)
    decode_tokens: int = 32
    timing_rounds: int = 5
    description: str = ""
    environment: str = ""
    bases: Mapping[str, Experiment] | tuple[tuple[str, Experiment], ...] = ()
    others: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        for field in ("bases", "others"):
            given = getattr(self, field)
            object.__setattr__(self, field, tuple(given.items() if isinstance(given, Mapping) else given))
        check(self)
        for field in ("variants", "lrs", "seeds"):
            values = getattr(self, field)
            keys = [value.name if field == "variants" else value for value in values]
            if not keys or len(set(keys)) < len(keys):
                raise UserError(f"ablation {self.name!r}: {field} must be at least one and all different, found {keys}")
        rates = [lr for lrs in (self.lrs, *(variant.lrs or () for variant in self.variants)) for lr in lrs]
        for field, values, least in (
            ("sweep_steps", [self.sweep_steps], 1),
            ("decode_tokens", [self.decode_tokens], 1),
            ("timing_rounds", [self.timing_rounds], 1),
            ("contexts", self.contexts, 1),
            ("widen", [self.widen], 0),
            ("tolerance", [self.tolerance], 0),
            ("lrs", rates, 0),
            ("seeds", self.seeds, 0),
        ):
            if min(values, default=least) < least:
                raise UserError(f"ablation {self.name!r}: {field} must be at least {least}, found {min(values)}")
        if max(self.seeds) >= 2**32:
            raise UserError(f"ablation {self.name!r}: seeds must lie in 0..2**32-1, found {max(self.seeds)}")
        try:
            re.compile(self.vary)
        except re.error as error:
            raise UserError(f"ablation {self.name!r}: vary={self.vary!r} is no regular expression: {error}") from None
        bound, needed = self.base.model.max_positions, max(self.contexts, default=0) + self.decode_tokens
        if bound is not None and needed > bound:
            raise UserError(
                f"ablation {self.name!r}: decoding up to {needed} tokens does not fit base.model.max_positions={bound}"
            )

    @property
    def baseline(self) -> str:
        """The name of the first variant."""
        return self.variants[0].name

    @property
    def names(self) -> tuple[str, ...]:
        """The variants' names, in order."""
        return tuple(variant.name for variant in self.variants)

    def rates(self, name: str) -> tuple[float, ...]:
        """The sweep of a variant, before it is widened."""
        own = next(variant.lrs for variant in self.variants if variant.name == name)
        return self.lrs if own is None else own

    def select(self, only: str | None) -> tuple[str, ...]:
        """All names, or the one asked for. Raises UserError with the nearest names when there is none such."""
        if only is None:
            return self.names
        lookup(dict.fromkeys(self.names), only, f"model of the ablation {self.name!r}")
        return (only,)

    def matched(self, name: str) -> tuple[Experiment, int | None]:
        """(the base with a variant's changes and matched in size, the value of the field that was varied, None where none was).

        Raises UserError for fields that do not exist or fit, and when no value gives the baseline's size.
        """
        changed = self._changed(name)
        if self.match == "none" or name == self.baseline:
            return changed, None
        target = count(self._changed(self.baseline).specs)
        if count(changed.specs) == target:
            return changed, None
        return match(changed, target, self.tolerance, self.vary, f"model {name!r}")

    def _changed(self, name: str) -> Experiment:
        changes = next(variant.changes for variant in self.variants if variant.name == name)
        try:
            changed = replaced(self.base, changes)
        except UserError as error:
            raise UserError(f"variant {name!r}: {error}") from None
        theirs, ours = changed.objective.score, self.base.objective.score
        if theirs != ours:
            raise UserError(
                f"variant {name!r} follows the score {theirs.name!r}, the base {ours.name!r}: rows must share one"
            )
        return changed

    def words(self, name: str) -> str:
        """What a variant changes, in words: `MQA(n_heads=4)`, `optim.name='muon'`."""
        changes = next(variant.changes for variant in self.variants if variant.name == name)
        return ", ".join(f"{path}={describe(value)}" for path, value in changes)

    def experiment(self, name: str, lr: float, seed: int, sweep: bool = False) -> Experiment:
        """One run, of the sweep or of the final length. It evaluates and saves at its end only."""
        e, _ = self.matched(name)
        rhythm = {"eval_every": None, "save_every": None, "keep": 1}
        if sweep:
            # A rate at which training diverges is an answer of the sweep, no error.
            rhythm |= {"steps": self.sweep_steps, "max_bad_steps": self.sweep_steps + 1}
        return dataclasses.replace(
            e,
            data=dataclasses.replace(e.data, seed=seed),
            optim=dataclasses.replace(e.optim, lr=lr),
            train=dataclasses.replace(e.train, **rhythm),
            seed=seed,
        )


def load(path) -> Ablation:
    """The Ablation that a config file's `ablation()` returns. Raises UserError as `jaxeff.train.config_file.load` does."""
    return returned(path, "ablation", Ablation)


def describe(value: Any) -> str:
    """A dataclass with those fields only that differ from their defaults: `GQA(n_heads=4, n_kv_heads=1)`."""
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))})"
    if not dataclasses.is_dataclass(value):
        return repr(value)
    fields = [
        f for f in dataclasses.fields(value) if f.init and f.name != "d_model" and getattr(value, f.name) != f.default
    ]
    return f"{type(value).__name__}({', '.join(f'{f.name}={describe(getattr(value, f.name))}' for f in fields)})"
