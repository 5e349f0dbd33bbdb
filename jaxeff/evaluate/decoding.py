"""What decoding costs: programs to time, and the bytes of the state. B batch, T time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxeff.core.precision import POLICIES, Policy
from jaxeff.mixers.base import Ctx
from jaxeff.models.lm import LM


def state_bytes(lm: LM, context: int, batch: int = 1, dtype=jnp.float32) -> int:
    """Bytes of the decode state for `batch` texts of `context` tokens."""
    state = jax.eval_shape(functools.partial(lm.init_state, batch, context, dtype))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


@dataclasses.dataclass
class Decoding:
    """Two compiled programs: from a prompt of `context` tokens to the first new one, and `n_tokens` greedy steps after it.

    Raises ValueError when the model cannot see that many positions.
    """

    lm: LM
    params: dict
    context: int
    n_tokens: int = 32
    batch: int = 1
    policy: Policy = POLICIES["float32"]

    def __post_init__(self):
        total = self.context + self.n_tokens
        if self.lm.max_positions is not None and total > self.lm.max_positions:
            raise ValueError(
                f"decoding at {self.context} needs {total} positions; the model has max_positions={self.lm.max_positions}"
            )
        lm, ctx = self.lm, Ctx(policy=self.policy)
        self._prompt_BT = jnp.broadcast_to(jnp.arange(self.context) % lm.vocab_size, (self.batch, self.context)).astype(
            jnp.int32
        )

        def next_token(params, tokens_BT, state):
            out = lm.hidden(params, tokens_BT, state, ctx=ctx)
            return jnp.argmax(lm.logits(params, out.y[:, -1:]), axis=-1).astype(jnp.int32), out.state

        def first(params, prompt_BT):
            return next_token(params, prompt_BT, lm.start(params, self.batch, total, ctx=ctx))

        def further(params, token_B1, state):
            def step(carry, _):
                return next_token(params, *carry), None

            return jax.lax.scan(step, (token_B1, state), None, length=self.n_tokens)[0][0]

        self._first, self._further = jax.jit(first), jax.jit(further)
        self._prefilled = jax.block_until_ready(self._first(self.params, self._prompt_BT))
        self.further_tokens()

    def first_token(self):
        """Prefill and the first new token; blocks until it is there."""
        jax.block_until_ready(self._first(self.params, self._prompt_BT)[0])

    def further_tokens(self):
        """`n_tokens` more tokens; blocks until they are there."""
        jax.block_until_ready(self._further(self.params, *self._prefilled))

    @property
    def state_bytes(self) -> int:
        """Bytes kept between tokens after `context` tokens."""
        return state_bytes(self.lm, self.context, self.batch, jnp.dtype(self.policy.compute))
