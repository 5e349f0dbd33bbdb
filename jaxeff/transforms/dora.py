"""Adapters of direction and magnitude (Liu et al. 2024, "DoRA"). I inputs, O outputs of a weight.

    W' = m_o (W + s A B) / |W + s A B|_o        |.|_o: the norm over the inputs of an output        m = |W| at the start

The norm is a constant of the gradient (section 4.3). It is had from |W + U|^2 = |W|^2 + 2 <W, U> + |U|^2 with U = s A B and the
inputs of W and A contracted first, so that neither A B nor a dense quantized W is formed; and with B = 0 it is |W| to the bit.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, ones
from jaxeff.core.weight import dense, einsum, take, terms
from jaxeff.transforms.ia3 import scaled
from jaxeff.transforms.lora import LoRA, LoRAWeight
from jaxeff.transforms.node import Node
from jaxeff.transforms.plan import Plan, rewriting

LEAST = 1e-30  # the square of a norm that may be divided by


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DoRAWeight(Node):
    """The direction of a LoRAWeight times a magnitude. magnitude, norm (of the base): [*L, *O]."""

    lora: LoRAWeight
    magnitude: jax.Array
    norm: jax.Array

    stage, parts = "adapter", ("lora",)

    @property
    def factor(self) -> jax.Array:
        """m / |W + s A B|, float32 [*L, *O]."""
        lora, norm = self.lora, self.norm.astype(jnp.float32)
        share = jax.lax.stop_gradient(_growth(lora, norm))
        return self.magnitude.astype(jnp.float32) / norm * jax.lax.rsqrt(jnp.maximum(share, LEAST))

    def dense(self, dtype) -> jax.Array:
        """The product in float32."""
        factor, n = self.factor, self.lora.n_stacked
        factor = factor.reshape(*factor.shape[:n], *(1,) * self.lora.n_in, *factor.shape[n:])
        return (dense(self.lora, jnp.float32) * factor).astype(dtype)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The adapted product, its outputs scaled; on the way back x is scaled first."""
        lora = self.lora
        t = terms(eqn, lora.n_stacked, lora.n_in)
        if lora.n_stacked or not (t.forward or t.backward):
            return super().einsum(eqn, x)
        if t.backward:
            return einsum(eqn, grown(x, t.x, t.outputs, self.factor), lora)
        return grown(einsum(eqn, x, lora), t.result, t.outputs, self.factor)

    def take(self, ids: jax.Array, dtype) -> jax.Array:
        """Rows of the adapted weight, scaled."""
        rows = take(self.lora, ids, jnp.float32)
        return (rows * self.factor.reshape(*(1,) * ids.ndim, *self.factor.shape)).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def grown(x: jax.Array, letters: str, along: str, factor: jax.Array) -> jax.Array:
    """`scaled(x, letters, along, factor)`, with the factor's gradient from the result, x f (df / f), which layers keep anyway,
    and not from x, which would be kept for it alone. A factor of exactly 0 has gradient 0."""
    return scaled(x, letters, along, factor)


@grown.defjvp
def _grown_jvp(letters, along, primals, tangents):
    (x, factor), (dx, dfactor) = primals, tangents
    y = grown(x, letters, along, factor)
    rounded = factor.astype(x.dtype).astype(factor.dtype)
    share = dfactor / jnp.where(rounded == 0, 1.0, rounded)
    return y, scaled(dx, letters, along, factor) + scaled(y, letters, along, share)


def _growth(lora: LoRAWeight, norm: jax.Array) -> jax.Array:
    """|W + s A B|^2 / |W|^2, float32 [*L, *O]: 1 where B is 0."""
    n = lora.n_stacked
    letters = iter("abcdefghijklmnop")
    stacked, inputs, outputs = ("".join(next(letters) for _ in range(k)) for k in (n, lora.n_in, lora.b.ndim - n - 1))
    a, b = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (lora.a, lora.b))
    if n:
        aw = jnp.einsum(
            f"{stacked}{inputs}r,{stacked}{inputs}{outputs}->{stacked}r{outputs}", a, dense(lora.base, jnp.float32)
        )
    else:
        aw = einsum(
            f"r{inputs},{inputs}{outputs}->r{outputs}", jnp.moveaxis(a, -1, 0), jax.lax.stop_gradient(lora.base)
        )
    aa = jnp.einsum(f"{stacked}{inputs}r,{stacked}{inputs}s->{stacked}rs", a, a)
    ab = jnp.einsum(f"{stacked}rs,{stacked}s{outputs}->{stacked}r{outputs}", aa, b)
    change = jnp.sum(b * (2.0 * lora.scale * aw + lora.scale**2 * ab), axis=n)
    return 1.0 + change / jnp.square(norm)


def norms(weight, spec: Spec) -> jax.Array:
    """|W| of each output, float32 [*L, *O]; 1 where it is 0. spec: of the weight."""
    inputs = tuple(range(spec.n_stacked, spec.n_stacked + spec.n_in))
    norm = jnp.sqrt(jnp.sum(jnp.square(dense(weight, jnp.float32)), axis=inputs))
    return jnp.where(norm > 0, norm, 1.0)


@dataclasses.dataclass(frozen=True)
class DoRA(LoRA):
    """`LoRA` with a magnitude for each output, which trains too; all settings are those of LoRA, starts from the base apart.

    The magnitude begins as the norm of the base. An output whose weights are all zero has magnitude and norm 1.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.init != "kaiming":
            raise ValueError(f"DoRA.init must be 'kaiming', found {self.init!r}")

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        inner = self.nodes(specs, "DoRA")

        def declared(lora: LoRAWeight) -> DoRAWeight:
            spec = lora.spec()
            axes = (*spec.axes[: spec.n_stacked], *spec.axes[spec.n_stacked + spec.n_in :])
            size = Spec((*spec.stacked, *spec.outputs), axes, ones, n_in=0, n_stacked=spec.n_stacked)
            return DoRAWeight(lora, size, size)

        nodes = {path: declared(lora) for path, lora in inner.items()}

        def fill(path: str, weight, key) -> DoRAWeight:
            lora = self.filled(f"{path}/lora", inner[path], weight, key)
            norm = norms(weight, inner[path].spec()).astype(lora.a.dtype)
            return DoRAWeight(lora, norm, jnp.copy(norm))

        return rewriting(
            specs,
            nodes,
            fill,
            ("lora/a", "lora/b", "magnitude"),
            seeded=self.seeded(nodes),
            rate=self.rate(nodes, "lora/b"),
        )

    def seed(self, path: str, weight: DoRAWeight, key) -> DoRAWeight:
        """See `LoRA.seed`."""
        return dataclasses.replace(weight, lora=super().seed(path, weight.lora, key))
