"""The contract of every mixer. B batch, T time, D model.

A mixer is a frozen dataclass of sizes. It holds no arrays, so it is hashable, printable and static under `jax.jit`; its
parameters are a tree of plain arrays (or weight nodes) declared by `specs()`.

    y_BTD = mixer.apply(params, x_BTD).y                        # training: the whole sequence, no state
    out = mixer.apply(params, prompt_BTD, state)                # prefill: out.y, out.state
    out = mixer.apply(params, x_B1D, out.state)                 # one decode step is the same call with T = 1
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar
from zlib import crc32

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError, nearest
from jaxeff.core.precision import POLICIES, Policy
from jaxeff.core.sharding import RULES, Rules, constrain
from jaxeff.core.spec import Spec, zeros
from jaxeff.core.weight import einsum
from jaxeff.ops.segments import Row, Tokens, tokens


@jax.tree_util.register_pytree_with_keys_class
class Shared(Mapping):
    """Values that cross layers, by name; immutable. `shared | {"v": v}` is another one with `v` in it."""

    def __init__(self, values: Mapping[str, Any] = {}):  # noqa: B006  copied
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise UserError(f"no layer before this one shares {name!r}; {nearest(name, self._values)}")
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where no layer before this one shares it."""
        return self._values.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __or__(self, more: Mapping[str, Any]) -> "Shared":
        return Shared({**self._values, **more})

    def __repr__(self) -> str:
        return f"Shared({', '.join(self._values)})"

    def tree_flatten_with_keys(self):
        names = sorted(self._values)
        return [(jax.tree_util.DictKey(name), self._values[name]) for name in names], tuple(names)

    @classmethod
    def tree_unflatten(cls, names, values):
        return cls(dict(zip(names, values, strict=True)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ctx:
    """What a layer may need to know about its input beside the input itself.

    positions: int32 [B, T] or None, which counts from 0, or goes on from the state. segment_ids: int32 [B, T], 0 for padding,
    or None for one segment that goes on from the state. shared: values that cross layers, by name. key: of this layer's random
    numbers, None for none (no dropout). policy, mesh, rules (see `core.sharding`): static. taps: rules for the paths of blocks
    whose outputs the stack is to return. descent: a `models.descent.Descent` for a training step that updates the weights of
    repeated blocks within its backward pass, None to find gradients.
    """

    positions: jax.Array | None = None
    segment_ids: jax.Array | None = None
    shared: Shared = dataclasses.field(default_factory=Shared)
    key: jax.Array | None = None
    descent: Any = None
    policy: Policy = dataclasses.field(default=POLICIES["float32"], metadata={"static": True})
    mesh: Any = dataclasses.field(default=None, metadata={"static": True})
    rules: Rules = dataclasses.field(default=RULES, metadata={"static": True})
    taps: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """x laid out on the mesh by its logical axes; x itself where there is no mesh."""
        return constrain(x, axes, self.mesh, self.rules)

    def tokens(self, x_BTD: jax.Array, row: Row | None = None) -> tuple[Tokens, Row | None]:
        """What segment ids and positions say of these tokens, and the row of the state after them; see `ops.segments`."""
        return tokens(x_BTD.shape[:2], self.segment_ids, self.positions, row)

    def fold(self, name: str | int | jax.Array) -> "Ctx":
        """The same with the key of the part called `name`, or number `name`: parts draw different random numbers."""
        if self.key is None:
            return self
        data = crc32(name.encode()) if isinstance(name, str) else name
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, data))

    def sharing(self, values: Mapping[str, Any]) -> "Ctx":
        """The same with more shared values."""
        return dataclasses.replace(self, shared=self.shared | values) if values else self


class Out(NamedTuple):
    """What a layer returns.

    y: [B, T, D]. state: the new state, None exactly when none was passed. shared: values for later layers, by name. aux: what it
    tells beside, by name, scalars or small arrays; `loss` among them is weighted already and is added to the objective,
    everything else is a metric.
    """

    y: jax.Array
    state: Any = None
    shared: Mapping[str, Any] = {}
    aux: Mapping[str, Any] = {}


class Mixer(Protocol):
    """A sequence or channel mixer; see the module docstring. Segment id 0 leaves every state untouched.

    A mixer that takes part in sharing names what it reads in a tuple `reads` and what it writes in `writes`; others have neither.
    """

    d_model: int | None

    def specs(self) -> dict[str, Any]:
        """Tree of `Spec`."""

    def init_state(self, batch: int, max_len: int, dtype) -> Any:
        """An empty decode state, a pytree; its size does not grow with max_len for recurrent mixers."""

    def apply(self, params, x_BTD: jax.Array, state=None, *, ctx: Ctx = Ctx()) -> Out:
        """See `Out`."""


Part = TypeVar("Part")


def bind(part: Part, d_model: int) -> Part:
    """`part` with its open `d_model` filled in. Raises ValueError when it was made for another width."""
    if part.d_model is None:
        return dataclasses.replace(part, d_model=d_model)
    if part.d_model != d_model:
        raise ValueError(f"{type(part).__name__}(d_model={part.d_model}) cannot stand in a model of d_model={d_model}")
    return part


def width(part) -> int:
    """`part.d_model`, once it is known. Raises ValueError when the part is used before it was given a width."""
    if part.d_model is None:
        raise ValueError(f"{type(part).__name__} has no d_model: write {type(part).__name__}(d_model=256)")
    return part.d_model


def at_least_one(part, *names: str) -> None:
    """Raises ValueError when one of these fields is an integer below 1."""
    for name in names:
        value = getattr(part, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{type(part).__name__}.{name} must be at least 1, found {value}")


def biased(specs: dict[str, Spec], names: tuple[str, ...], part) -> dict[str, Spec]:
    """`specs` and a zero bias `<name>_bias` for the outputs of each named weight. Raises ValueError for a name that is none."""
    for name in names:
        if name not in specs:
            raise ValueError(f"{type(part).__name__}.biases names {name!r}; {nearest(name, specs)}")
    chosen = {name: specs[name] for name in specs if name in names}
    return specs | {f"{n}_bias": Spec(s.outputs, s.axes[s.n_in :], zeros, n_in=0) for n, s in chosen.items()}


def project(params, name: str, eqn: str, x_BTD: jax.Array) -> jax.Array:
    """`einsum(eqn, x, params[name])` plus `params[name_bias]` where there is one."""
    y = einsum(eqn, x_BTD, params[name])
    bias = params.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(y.dtype)[None, None]


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """x with a share `rate` of its numbers zeroed and the others scaled up (Srivastava et al. 2014); x itself without a key."""
    if key is None or not rate:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))
