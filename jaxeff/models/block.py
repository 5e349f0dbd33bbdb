"""A residual block: a sequence mixer and a channel mixer with their norms. B batch, T time, D model.

pre       x + f(norm(x))              (GPT-2, Llama)
post      x + norm(f(x))              (OLMo 2: on the branch, the residual stream stays clean)
sandwich  x + norm'(f(norm(x)))       (Gemma 2)
parallel  x + f(norm(x)) + g(norm'(x)), f and g the two mixers (GPT-NeoX); with one norm for both (GPT-J)
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxeff.core.errors import lookup
from jaxeff.mixers.base import Ctx, Out, bind, dropout
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.norm import Norm, RMSNorm
from jaxeff.mixers.registry import MIXERS
from jaxeff.mixers.sliced import apply_sliced


@dataclasses.dataclass(frozen=True)
class Block:
    """One layer. `mlp` None leaves the channel mixer out.

    one_norm: a parallel block's mixers read the same normalised x. residual_scale: what a branch is multiplied by before it is
    added (Granite, MiniCPM). dropout: share of a branch's numbers that training drops (Vaswani et al. 2017, section 5.4).

    Paths: `mixer_norm/scale`, `mixer/...`, `mlp_norm/scale`, `mlp/...`; the norms after a branch are `*_post_norm`, one norm for
    both is `norm`.

    Raises ValueError for settings that do not go together.
    """

    mixer: Any
    mlp: Any = MLP()
    norm: Norm = RMSNorm()
    placement: Literal["pre", "post", "sandwich"] = "pre"
    parallel: bool = False
    one_norm: bool = False
    residual_scale: float = 1.0
    dropout: float = 0.0

    def __post_init__(self):
        if not dataclasses.is_dataclass(self.mixer) or isinstance(self.mixer, type):
            raise ValueError(f"Block.mixer must be a mixer, such as GQA(n_heads=4), found {self.mixer!r}")
        if not isinstance(self.norm, Norm):
            raise ValueError(f"Block.norm must be RMSNorm(...) or LayerNorm(...), found {self.norm!r}")
        if self.placement not in ("pre", "post", "sandwich"):
            raise ValueError(f"Block.placement must be 'pre', 'post' or 'sandwich', found {self.placement!r}")
        if self.one_norm and not (self.parallel and self.mlp is not None and self.placement != "post"):
            raise ValueError(
                "Block.one_norm needs parallel=True, an mlp, and a placement with a norm before the branches"
            )
        if not self.residual_scale > 0:
            raise ValueError(f"Block.residual_scale must be above 0, found {self.residual_scale}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Block.dropout must lie in [0, 1), found {self.dropout}")

    def bind(self, d_model: int) -> "Block":
        """The block with its mixers' widths filled in."""
        mlp = None if self.mlp is None else bind(self.mlp, d_model)
        return dataclasses.replace(self, mixer=bind(self.mixer, d_model), mlp=mlp)

    @property
    def parts(self) -> dict[str, Any]:
        """name -> mixer, in order of application."""
        return {"mixer": self.mixer} if self.mlp is None else {"mixer": self.mixer, "mlp": self.mlp}

    def specs(self):
        """Specs of the mixers and of their norms."""
        specs = {}
        for name, part in self.parts.items():
            specs[name] = part.specs()
            if self.placement != "post":
                specs[self._norm_before(name)] = self.norm.specs((part.d_model,), ("embed",))
            if self.placement != "pre":
                specs[f"{name}_post_norm"] = self.norm.specs((part.d_model,), ("embed",))
        return specs

    def init_state(self, batch: int, max_len: int, dtype):
        """The states of both mixers."""
        return {name: part.init_state(batch, max_len, dtype) for name, part in self.parts.items()}

    def apply(self, params, x_BTD: jax.Array, state=None, *, ctx: Ctx = Ctx()) -> Out:
        """x_BTD with the branches added; aux by `<mixer or mlp>/<name>`."""
        new_state, shared, aux = {}, {}, {}
        source_BTD = x_BTD
        for name, part in self.parts.items():
            h_BTD = source_BTD if self.parallel else x_BTD
            if self.placement != "post":
                h_BTD = self.norm.apply(params[self._norm_before(name)], h_BTD)
            before = None if state is None else state[name]
            out = apply_sliced(part, params[name], h_BTD, before, ctx.fold(name).sharing(shared))
            y_BTD, new_state[name] = out.y, out.state
            shared |= _declared(part, out.shared)
            aux |= {f"{name}/{key}": value for key, value in out.aux.items()}
            if self.placement != "pre":
                y_BTD = self.norm.apply(params[f"{name}_post_norm"], y_BTD)
            if self.residual_scale != 1:
                y_BTD = y_BTD * jnp.asarray(self.residual_scale, y_BTD.dtype)
            x_BTD = x_BTD + dropout(y_BTD, self.dropout, ctx.fold(f"{name}_dropout").key)
        return Out(x_BTD, None if state is None else new_state, shared, aux)

    def _norm_before(self, name: str) -> str:
        return "norm" if self.one_norm else f"{name}_norm"


def as_block(entry: Block | str) -> Block:
    """A Block, or the Block of a mixer's registry name. Raises UserError with the nearest names."""
    return Block(lookup(MIXERS, entry, "mixer")()) if isinstance(entry, str) else entry


def _declared(part, shared):
    for name in shared:
        if name not in getattr(part, "writes", ()):
            raise ValueError(f"{type(part).__name__} shares {name!r}, which its `writes` does not name")
    return shared
