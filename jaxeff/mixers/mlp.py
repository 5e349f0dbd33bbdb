"""The channel mixer of the Transformer. B batch, T time, D model, F hidden."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxeff.core.errors import lookup
from jaxeff.core.spec import Spec, residual
from jaxeff.mixers.base import Ctx, Out, at_least_one, biased, project, width
from jaxeff.mixers.state import check_state


def gelu_exact(x: jax.Array) -> jax.Array:
    """x Phi(x), with the error function."""
    return jax.nn.gelu(x, approximate=False)


def relu_squared(x: jax.Array) -> jax.Array:
    """max(x, 0)^2 (So et al. 2021, "Primer")."""
    return jnp.square(jax.nn.relu(x))


_JAX = (
    jax.nn.celu, jax.nn.elu, jax.nn.gelu, jax.nn.hard_silu, jax.nn.hard_tanh, jax.nn.leaky_relu, jax.nn.log_sigmoid, jax.nn.mish,
    jax.nn.relu, jax.nn.relu6, jax.nn.selu, jax.nn.sigmoid, jax.nn.silu, jax.nn.soft_sign, jax.nn.softplus, jax.nn.squareplus,
    jnp.tanh,
)  # fmt: skip
ACTIVATIONS = {f.__name__: f for f in (*_JAX, gelu_exact, relu_squared)} | {"swish": jax.nn.silu}


def activated(activation: str, gate: jax.Array, up: jax.Array | None = None) -> jax.Array:
    """act(gate) * up, or act(gate); the steps are float32, rounded once at their end."""
    h = ACTIVATIONS[activation](gate.astype(jnp.float32))
    h = h if up is None else h * up.astype(jnp.float32)
    return h.astype(gate.dtype)


@dataclasses.dataclass(frozen=True)
class MLP:
    """y = down(act(gate x) * up x), or down(act(up x)) when not gated (Shazeer 2020, "GLU variants improve Transformer").

    `d_hidden` None derives 4 D, or 8 D / 3 rounded up to a multiple of 8 when gated, so that both have nearly the same size.
    Cost per token: 2 x parameters FLOPs in the forward pass, the same in decoding; no state.

    biases: names among gate, up, down.

    Parameters: (3 if gated else 2) * d_model * hidden
        + (("up" in biases) + ("gate" in biases)) * hidden + ("down" in biases) * d_model
    """

    d_model: int | None = None
    d_hidden: int | None = None
    activation: str = "silu"
    gated: bool = True
    biases: tuple[str, ...] = ()

    def __post_init__(self):
        lookup(ACTIVATIONS, self.activation, "activation")
        at_least_one(self, "d_model", "d_hidden")
        if self.d_model is not None:
            self.specs()

    @property
    def hidden(self) -> int:
        """F, given or derived."""
        if self.d_hidden is not None:
            return self.d_hidden
        return -(-8 * width(self) // 3 // 8) * 8 if self.gated else 4 * width(self)

    def specs(self):
        """`up`, `down`, and `gate` where gated; `<name>_bias`."""
        d, f = width(self), self.hidden
        specs = {"up": Spec((d, f), ("embed", "mlp")), "down": Spec((f, d), ("mlp", "embed"), residual)}
        if self.gated:
            specs["gate"] = Spec((d, f), ("embed", "mlp"))
        return biased(specs, self.biases, self)

    def init_state(self, batch: int, max_len: int, dtype):
        """Nothing is remembered."""
        return ()

    def apply(self, params, x_BTD: jax.Array, state=None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`; there is no state."""
        check_state(self, state, x_BTD)

        # The backward pass keeps the products and repeats the activation: as much work, a third of the memory.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def down(params, gate_BTF, up_BTF):
            return project(params, "down", "btf,fd->btd", activated(self.activation, gate_BTF, up_BTF))

        up_BTF = project(params, "up", "btd,df->btf", x_BTD)
        gate_BTF = project(params, "gate", "btd,df->btf", x_BTD) if self.gated else None
        y_BTD = down(params, gate_BTF, up_BTF) if self.gated else down(params, up_BTF, None)
        return Out(y_BTD, state)
