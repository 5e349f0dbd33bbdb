"""Which number format is used where.

Parameters live in `param`; activations and matrix products run in `compute`; norms, softmax, log-decays, cumulative sums,
discretisation, rotary angles and losses are float32 whatever the policy. Gradients come in the parameters' dtype and are summed
over micro-batches in `reduce`. Decays are kept as logarithms, and no positive sum is ever exponentiated.
"""

import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Policy:
    """Names of the dtypes of parameters, of computation, and of sums of gradients over micro-batches."""

    param: str = "float32"
    compute: str = "float32"
    reduce: str = "float32"

    def __post_init__(self):
        for name in dataclasses.astuple(self):
            jnp.dtype(name)


POLICIES = {
    "float32": Policy(),
    "bfloat16": Policy(compute="bfloat16"),
    "float16": Policy(compute="float16"),
}
