"""A residual block: a sequence mixer and a channel mixer with their norms. B batch, T time, D model.

pre       x + f(norm(x))              (GPT-2, Llama)
post      x + norm(f(x))              (OLMo 2: on the branch, the residual stream stays clean)
sandwich  x + norm'(f(norm(x)))       (Gemma 2)
parallel  x + f(norm(x)) + g(norm'(x)), f and g the two mixers (GPT-NeoX)
"""

import dataclasses
from typing import Any, Literal

import jax

from jaxeff.core.spec import Spec, ones, zeros
from jaxeff.mixers.base import Ctx, bind
from jaxeff.mixers.mlp import MLP
from jaxeff.ops.norm import layer_norm, rms_norm

NormKind = Literal["rms", "layer"]


def norm_specs(kind: NormKind, d_model: int):
    """`scale`, and `bias` for LayerNorm."""
    specs = {"scale": Spec((d_model,), ("embed",), ones, n_in=0)}
    return specs if kind == "rms" else specs | {"bias": Spec((d_model,), ("embed",), zeros, n_in=0)}


def norm(kind: NormKind, params, x_BTD: jax.Array) -> jax.Array:
    """RMSNorm or LayerNorm over D."""
    return rms_norm(x_BTD, params["scale"]) if kind == "rms" else layer_norm(x_BTD, params["scale"], params["bias"])


@dataclasses.dataclass(frozen=True)
class Block:
    """One layer. `mlp` None leaves the channel mixer out.

    Paths: `mixer_norm/scale`, `mixer/...`, `mlp_norm/scale`, `mlp/...`; the norms after a branch are `*_post_norm`.
    """

    mixer: Any
    mlp: Any = MLP()
    norm: NormKind = "rms"
    placement: Literal["pre", "post", "sandwich"] = "pre"
    parallel: bool = False

    def __post_init__(self):
        if self.norm not in ("rms", "layer"):
            raise ValueError(f"Block.norm must be 'rms' or 'layer', found {self.norm!r}")
        if self.placement not in ("pre", "post", "sandwich"):
            raise ValueError(f"Block.placement must be 'pre', 'post' or 'sandwich', found {self.placement!r}")

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
                specs[f"{name}_norm"] = norm_specs(self.norm, part.d_model)
            if self.placement != "pre":
                specs[f"{name}_post_norm"] = norm_specs(self.norm, part.d_model)
        return specs

    def init_state(self, batch: int, max_len: int, dtype):
        """The states of both mixers."""
        return {name: part.init_state(batch, max_len, dtype) for name, part in self.parts.items()}

    def apply(self, params, x_BTD: jax.Array, state=None, *, ctx: Ctx = Ctx()):
        """(x_BTD, state), residual added."""
        new_state = {}
        source_BTD = x_BTD
        for name, part in self.parts.items():
            y_BTD = source_BTD if self.parallel else x_BTD
            if self.placement != "post":
                y_BTD = norm(self.norm, params[f"{name}_norm"], y_BTD)
            y_BTD, new_state[name] = part.apply(params[name], y_BTD, None if state is None else state[name], ctx=ctx)
            if self.placement != "pre":
                y_BTD = norm(self.norm, params[f"{name}_post_norm"], y_BTD)
            x_BTD = x_BTD + y_BTD
        return x_BTD, None if state is None else new_state
