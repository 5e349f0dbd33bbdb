"""An ablation as a value: models that differ in one thing, and the protocol that compares them.

    def ablation() -> Ablation: ...          in configs/ablations/X.py
    jaxeff ablate configs/ablations/X.py     see `jaxeff.lab.run`

The first variant is the baseline: the others are matched to its number of parameters, and differences are taken to it.
"""

import dataclasses
from typing import Literal

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.spec import count
from jaxeff.lab.matching import TOLERANCE, match
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.train.experiment import Experiment, call


@dataclasses.dataclass(frozen=True)
class Variant:
    """One model of an ablation: the base's LM with another `pattern` of blocks."""

    name: str
    pattern: tuple[Block | str, ...]

    def __post_init__(self):
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise UserError(
                f"a variant's name is made of letters, digits, - and _, as it names a folder; found {self.name!r}"
            )


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What is compared and how.

    base: everything that the models share, the length of the final runs included. lrs: the sweep, each rate tried for `sweep_steps`
    steps with the first seed. seeds: of the final runs; a seed sets the initial values and the order of the data. match: whether
    the width of the MLP makes up for differences in size, "parameters" within `tolerance`, or "none". contexts, decode_tokens:
    where and how long decoding is timed; timing_rounds: how many turns each model gets. environment: variables that the config
    file reads, as they stand before the command that reproduces a row.

    Raises UserError for no variants, two of one name, no seeds, no learning rates, no validation or test split, and contexts longer
    than the model's positions.
    """

    name: str
    base: Experiment
    variants: tuple[Variant, ...]
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    sweep_steps: int = 100
    match: Literal["parameters", "none"] = "parameters"
    tolerance: float = TOLERANCE
    contexts: tuple[int, ...] = (256, 1024)
    decode_tokens: int = 32
    timing_rounds: int = 5
    description: str = ""
    environment: str = ""

    def __post_init__(self):
        for field in ("variants", "lrs", "seeds"):
            values = getattr(self, field)
            keys = [value.name if field == "variants" else value for value in values]
            if not keys or len(set(keys)) < len(keys):
                raise UserError(f"ablation {self.name!r}: {field} must be at least one and all different, found {keys}")
        for field in ("sweep_steps", "decode_tokens", "timing_rounds"):
            if getattr(self, field) < 1:
                raise UserError(f"ablation {self.name!r}: {field} must be at least 1, found {getattr(self, field)}")

        if not (self.base.data.valid_fraction and self.base.data.test_fraction):
            raise UserError(
                f"ablation {self.name!r} needs a validation split, to choose learning rates, and a test split: neither can be 0"
            )
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

    def select(self, only: str | None) -> tuple[str, ...]:
        """All names, or the one asked for. Raises UserError with the nearest names when there is none such."""
        if only is None:
            return self.names
        lookup(dict.fromkeys(self.names), only, f"model of the ablation {self.name!r}")
        return (only,)

    def model(self, name: str) -> LM:
        """The LM of a variant, matched in size. Raises UserError when no MLP width gives the baseline's size."""
        model = self._plain(name)
        if self.match == "none" or name == self.baseline:
            return model
        return match(model, count(self._plain(self.baseline).specs()), self.tolerance, f"model {name!r}")

    def _plain(self, name: str) -> LM:
        pattern = next(variant.pattern for variant in self.variants if variant.name == name)
        return dataclasses.replace(self.base.model, pattern=pattern)

    def experiment(self, name: str, lr: float, seed: int, steps: int | None = None) -> Experiment:
        """One run: of the sweep with `steps`, else of the final length. It evaluates and saves at its end only."""
        base = self.base
        rhythm = {"eval_every": None, "save_every": None, "keep": 1}
        if steps is not None:
            # A rate at which training diverges is an answer of the sweep, no error.
            rhythm |= {"steps": steps, "max_bad_steps": steps + 1}
        return dataclasses.replace(
            base,
            model=self.model(name),
            data=dataclasses.replace(base.data, seed=seed),
            optim=dataclasses.replace(base.optim, lr=lr),
            train=dataclasses.replace(base.train, **rhythm),
            seed=seed,
        )


def load(path) -> Ablation:
    """The Ablation that a config file's `ablation()` returns. Raises UserError as `jaxeff.train.experiment.load` does."""
    found = call(path, "ablation")
    if not isinstance(found, Ablation):
        raise UserError(f"{path}: ablation() must return an Ablation, found {type(found).__name__}")
    return found
