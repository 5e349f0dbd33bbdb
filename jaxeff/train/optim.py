"""Optimizers and learning-rate schedules by name, all from optax, around rules of our own.

An update is clip -> direction of the named optimizer -> + decay * weight, masked -> * -learning rate. The learning rate is a
runtime value: runs that differ in it share one compiled step. So is the number of steps, because schedules are functions of
the *fraction* of the run that is done.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon, scale_by_ademamix, scale_by_adopt

from jaxeff.core.errors import lookup
from jaxeff.core.spec import Spec
from jaxeff.train.galore import scale_by_galore
from jaxeff.train.lomo import RULES, Within, scale_by_rule, within

ScheduleKind = Literal["cosine", "wsd", "linear", "constant"]


@dataclasses.dataclass(frozen=True)
class Optim:
    """Optimizer and schedule.

    name: a key of OPTIMIZERS. lr: the peak. b1, b2, eps, weight_decay: None for the value customary for that optimizer.
    weight_decay is decoupled, times the learning rate, and spares whatever is no matrix: norms, biases. clip: global gradient
    norm, None for none. schedule: `cosine` and `linear` fall from the peak to final * lr; `wsd` stays at the peak and falls
    over the last `decay` of the run; `constant` stays. warmup: the fraction of the run in which the rate rises from 0.
    ema: decay of an exponential moving average of the weights, which evaluation then uses. rank: of galore's subspace.
    """

    name: str = "adamw"
    lr: float = 3e-3
    schedule: ScheduleKind = "cosine"
    warmup: float = 0.05
    final: float = 0.1
    decay: float = 0.2
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None
    clip: float | None = 1.0
    ema: float | None = None
    rank: int | None = None

    def __post_init__(self):
        lookup(OPTIMIZERS, self.name, "optimizer")
        lookup(SCHEDULES, self.schedule, "schedule")
        for name, low, high in (
            ("warmup", 0, 1),
            ("final", 0, 1),
            ("decay", 0, 1),
            ("b1", 0, 1),
            ("b2", 0, 1),
            ("ema", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"Optim.{name} must lie in {low}..{high}, found {value}")
        for name in ("lr", "eps", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"Optim.{name} must be at least 0, found {value}")
        if self.rank is not None and (self.rank < 1 or self.name != "galore"):
            raise ValueError(f"Optim.rank is galore's, and at least 1, found {self.rank} with name={self.name!r}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"Optim.clip must be above 0, or None, found {self.clip}")
        if self.warmup + (self.decay if self.schedule == "wsd" else 0) > 1:
            raise ValueError(f"Optim.warmup={self.warmup} and decay={self.decay} leave no room in the run")


class Settings(NamedTuple):
    """An optimizer's numbers, customary values filled in."""

    b1: float
    b2: float
    eps: float
    weight_decay: float
    rank: int = 128


class Named(NamedTuple):
    """An optimizer: `build(settings, specs)` gives the direction to descend, unscaled; and its customary settings."""

    build: Callable[[Settings, Any], optax.GradientTransformation]
    settings: Settings


def _is_matrix(spec: Spec) -> bool:
    """Whether a parameter multiplies activations; a bias over heads has two dimensions but no input."""
    return spec.n_in > 0 and len(spec.shape) - spec.n_stacked >= 2


def decay_mask(specs):
    """Tree of bool: which parameters weight decay acts on."""
    return jax.tree.map(_is_matrix, specs)


def _muon(s: Settings, specs) -> optax.GradientTransformation:
    """Orthogonalised momentum for hidden matrices, Adam for the rest: embedding, head, convolutions, norms,
    biases (Jordan et al. 2024).

    Updates are scaled to AdamW's customary RMS (Liu et al. 2025), so that AdamW's learning rates fit.
    """

    def dimensions(spec: Spec):
        if not _is_matrix(spec) or "vocab" in spec.axes or "conv" in spec.axes:
            return None
        first, split = spec.n_stacked, spec.n_stacked + spec.n_in
        if split == len(spec.shape):
            return None
        return MuonDimensionNumbers(tuple(range(first, split)), tuple(range(split, len(spec.shape))))

    numbers = jax.tree.map(dimensions, specs)
    return optax.chain(
        muon(1.0, beta=s.b1, eps=s.eps, adam_b2=s.b2, consistent_rms=0.2, muon_weight_dimension_numbers=numbers),
        optax.scale(-1.0),
    )


def _adafactor(s: Settings, specs) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=s.b2, epsilon=s.eps),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )


OPTIMIZERS: dict[str, Named] = {
    "adam": Named(lambda s, _: optax.scale_by_adam(s.b1, s.b2, s.eps), Settings(0.9, 0.95, 1e-8, 0.0)),
    "adamw": Named(lambda s, _: optax.scale_by_adam(s.b1, s.b2, s.eps), Settings(0.9, 0.95, 1e-8, 0.1)),
    "nadamw": Named(lambda s, _: optax.scale_by_adam(s.b1, s.b2, s.eps, nesterov=True), Settings(0.9, 0.95, 1e-8, 0.1)),
    "radam": Named(lambda s, _: optax.scale_by_radam(s.b1, s.b2, s.eps), Settings(0.9, 0.999, 1e-8, 0.0)),
    "adabelief": Named(lambda s, _: optax.scale_by_belief(s.b1, s.b2, s.eps), Settings(0.9, 0.999, 1e-16, 0.0)),
    "adan": Named(lambda s, _: optax.scale_by_adan(s.b1, s.b2, eps=s.eps), Settings(0.98, 0.92, 1e-8, 0.02)),
    "adopt": Named(lambda s, _: scale_by_adopt(s.b1, s.b2, s.eps), Settings(0.9, 0.9999, 1e-6, 0.0)),
    "ademamix": Named(lambda s, _: scale_by_ademamix(s.b1, s.b2, eps=s.eps), Settings(0.9, 0.999, 1e-8, 0.1)),
    "lion": Named(lambda s, _: optax.scale_by_lion(s.b1, s.b2), Settings(0.9, 0.99, 0.0, 0.1)),
    "adafactor": Named(_adafactor, Settings(0.0, 0.8, 1e-30, 0.0)),
    "muon": Named(_muon, Settings(0.95, 0.95, 1e-8, 0.1)),
    "galore": Named(
        lambda s, specs: scale_by_galore(specs, s.rank, s.b1, s.b2, s.eps), Settings(0.9, 0.999, 1e-8, 0.0)
    ),
    "lomo": Named(lambda s, specs: scale_by_rule(RULES["lomo"](s.b2, s.eps), specs), Settings(0.0, 0.0, 0.0, 0.0)),
    "adalomo": Named(
        lambda s, specs: scale_by_rule(RULES["adalomo"](s.b2, s.eps), specs), Settings(0.0, 0.8, 1e-3, 0.0)
    ),
    "rmsprop": Named(lambda s, _: optax.scale_by_rms(s.b2, s.eps), Settings(0.0, 0.9, 1e-8, 0.0)),
    "sgd": Named(lambda s, _: optax.trace(s.b1, nesterov=True), Settings(0.9, 0.0, 0.0, 0.0)),
    "signum": Named(lambda s, _: optax.scale_by_lion(s.b1, s.b1), Settings(0.9, 0.0, 0.0, 0.0)),
}


def settings(optim: Optim) -> Settings:
    """The numbers in force."""
    customary = OPTIMIZERS[optim.name].settings
    given = {name: getattr(optim, name) for name in Settings._fields}
    return customary._replace(**{name: value for name, value in given.items() if value is not None})


def optimizer(optim: Optim, specs) -> optax.GradientTransformation:
    """The transformation from gradients to updates at learning rate -1: scale its result by `-lr`, then add it."""
    s = settings(optim)
    parts = [OPTIMIZERS[optim.name].build(s, specs)]
    if optim.clip is not None:
        parts.insert(0, optax.clip_by_global_norm(optim.clip))
    if s.weight_decay:
        parts.append(optax.add_decayed_weights(s.weight_decay, decay_mask(specs)))
    tx = optax.chain(*parts)

    def update(grads, state, params=None):
        with _optax_arithmetic():
            return tx.update(grads, state, params)

    return optax.GradientTransformation(tx.init, update)


def in_backward(optim: Optim, specs, looped: Sequence[str]) -> Within | None:
    """The optimizer as a part of the backward pass, of the blocks numbered `looped`; None for one that comes after it."""
    if optim.name not in RULES:
        return None
    s = settings(optim)
    return within(
        RULES[optim.name](s.b2, s.eps), specs, looped, lambda spec: s.weight_decay if _is_matrix(spec) else 0.0
    )


@contextlib.contextmanager
def _optax_arithmetic():
    """optax mixes dtypes and ranks; whoever forbids that in their own code can still train."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Shapes over the run that follows the warm-up, whose length is `rest`.
SCHEDULES: dict[str, Callable[[Optim, float], optax.Schedule]] = {
    "cosine": lambda o, rest: optax.cosine_decay_schedule(1.0, rest, alpha=o.final),
    "linear": lambda o, rest: optax.linear_schedule(1.0, o.final, rest),
    "constant": lambda o, rest: optax.constant_schedule(1.0),
    "wsd": lambda o, rest: optax.linear_schedule(1.0, o.final, o.decay, transition_begin=rest - o.decay),
}


def schedule(optim: Optim) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(step, total steps), step counted from 1, -> share of the peak learning rate, float32."""
    rest = max(1.0 - optim.warmup, 1e-6)
    shape = SCHEDULES[optim.schedule](optim, rest)
    if optim.warmup:
        shape = optax.join_schedules([optax.linear_schedule(0.0, 1.0, optim.warmup), shape], [optim.warmup])

    def share(step: jax.Array, total: jax.Array) -> jax.Array:
        done = step.astype(jnp.float32) / total.astype(jnp.float32)
        with _optax_arithmetic():
            return jnp.asarray(shape(done), jnp.float32)

    return share
