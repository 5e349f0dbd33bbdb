"""Step sizes and decays of state space models, which Mamba, Mamba-2 and Gated DeltaNet share (Gu and Dao 2023, "Mamba", 3.6).

    dt = softplus(x + bias),  log a = -exp(a_log) dt

Both parameters are float32 whatever the policy: a_log rounded to bfloat16 is another decay after some hundred tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Site


@dataclasses.dataclass(frozen=True)
class LogUniform:
    """log of a number that is uniform in [low, high]: a_log."""

    low: float
    high: float

    def __call__(self, key, shape, dtype, site: Site):
        return jnp.log(jax.random.uniform(key, shape, jnp.float32, self.low, self.high)).astype(dtype)


@dataclasses.dataclass(frozen=True)
class StepBias:
    """The bias for which softplus(bias) is log-uniform in [low, high], at least `floor`."""

    low: float
    high: float
    floor: float = 1e-4

    def __call__(self, key, shape, dtype, site: Site):
        log_dt = jax.random.uniform(key, shape, jnp.float32, jnp.log(self.low), jnp.log(self.high))
        dt = jnp.maximum(jnp.exp(log_dt), self.floor)
        return (dt + jnp.log(-jnp.expm1(-dt))).astype(dtype)


def step_size(x: jax.Array, bias: jax.Array) -> jax.Array:
    """dt in float32: softplus(x + bias), bias of any trailing shape of x's."""
    bias = bias.astype(jnp.float32)
    return jax.nn.softplus(x.astype(jnp.float32) + bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape))
