"""Adapters against PEFT's values; see make_peft.py.

Where PEFT differs by design: its AdaLoRA divides by rank + 1e-5, and adds the mean of norms |P^T P - 1| to the loss where the paper
and we have their squares; its VeRA cuts one pair of factors to the size of a weight, where each shape has a pair of ours.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.mixers import GQA, MLP
from jaxeff.mixers.base import Ctx, Out
from jaxeff.mixers.mamba import Mamba
from jaxeff.mixers.norm import RMSNorm
from jaxeff.mixers.short_conv import ShortConv
from jaxeff.models.block import Block
from jaxeff.transforms import TRANSFORMS, Plan
from jaxeff.transforms.adalora import AdaLoRAWeight
from jaxeff.transforms.dora import DoRAWeight
from jaxeff.transforms.ia3 import IA3Weight
from jaxeff.transforms.lora import LoRAWeight
from jaxeff.transforms.plan import map_weights
from jaxeff.transforms.vera import VeRAWeight
from tests.closeness import assert_close
from tests.golden.published import agree, cases
from tests.golden.test_mamba import converter

CASES = cases("peft")
ALL = slice(None)
RULES = {"llama": ("mixer/(q|k|v|o)", "mlp/(gate|up|down)"), "mamba": ("z|x|dt_low|b|c|dt|o",)}
SCALED = (("mixer/(k|v)", "out"), ("mlp/up", "out"), ("mixer/o", "in"), ("mlp/down", "in"))


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A layer of ours as a function of PEFT's arrays that train. Its gradients are PEFT's too: an array that several of our weights
    share has the sum of theirs.

    parts: our path -> (PEFT's module, those of its outputs that are our weight). arrays: all of PEFT's. lifted: our parameters
    around PEFT's base.
    """

    layer: Any
    plan: Plan
    parts: dict[str, tuple[str, slice]]
    arrays: dict[str, Any]
    lifted: Any

    def params(self, trained):
        """Our parameters."""

        def one(path, weight):
            module, outputs = self.parts.get(path, ("", ALL))
            arrays = {name.removeprefix(f"{module}/"): jnp.asarray(x) for name, x in (self.arrays | trained).items()}
            return filled(weight, arrays, outputs)

        return map_weights(one, self.lifted)

    def apply(self, trained, x_BTD, state=None, *, ctx=Ctx()) -> Out:
        """Of the layer."""
        return self.layer.apply(self.params(trained), x_BTD, state, ctx=ctx)


def filled(node, own, outputs):
    """A node with the arrays of PEFT's module, `own`, that belong to these of its outputs; other weights as they are."""
    match node:
        case LoRAWeight():
            new = {"a": own["lora_A/default/weight"].T, "b": own["lora_B/default/weight"][outputs].T}
        case DoRAWeight():
            node = dataclasses.replace(node, lora=filled(node.lora, own, outputs))
            new = {"magnitude": own["lora_magnitude_vector/default/weight"][outputs]}
        case VeRAWeight():
            i, o = node.a.size // node.inner.size, node.outer.size
            new = {"a": own["vera_A"][:, :i].T, "b": own["vera_B"][:o].T}
            new |= {"inner": own["vera_lambda_d/default"], "outer": own["vera_lambda_b/default"]}
        case AdaLoRAWeight():
            new = {"p": own["lora_A/default"].T, "values": own["lora_E/default"], "q": own["lora_B/default"].T}
        case IA3Weight():
            new = {"scale": own["ia3_l/default"]}
        case _:
            return node
    return dataclasses.replace(node, **{name: x.reshape(getattr(node, name).shape) for name, x in new.items()})


def llama(sizes):
    """(Our block, its parts, arrays of Llama's layer -> our tree)."""
    hidden = sizes.pop("d_hidden")
    block = Block(GQA(**sizes), MLP(sizes["d_model"], hidden), RMSNorm(1e-5))
    parts = {f"mixer/{name}": (f"self_attn/{name}_proj", ALL) for name in "qkvo"}
    parts |= {f"mlp/{name}": (f"mlp/{name}_proj", ALL) for name in ("gate", "up", "down")}
    norms = {"mixer_norm/scale": "input_layernorm/weight", "mlp_norm/scale": "post_attention_layernorm/weight"}

    def convert(w):
        def one(path, spec):
            return w[norms[path]] if path in norms else w[f"{parts[path][0]}/weight"].T.reshape(spec.shape)

        return map_weights(one, block.specs())

    return block, parts, convert


def mamba(sizes):
    """The same of Mamba."""
    mixer = Mamba(conv=ShortConv(sizes.pop("width")), **sizes)
    c, r, n = mixer.inner, mixer.rank, mixer.d_state
    parts = {"x": ("in_proj", slice(c)), "z": ("in_proj", slice(c, None))}
    parts |= {"dt_low": ("x_proj", slice(r)), "b": ("x_proj", slice(r, r + n)), "c": ("x_proj", slice(r + n, None))}
    return mixer, parts | {"dt": ("dt_proj", ALL), "o": ("out_proj", ALL)}, converter(mixer)


def adapted(case):
    """Our layer with the adapter of a case."""
    about = case["sizes"]
    layer, parts, convert = {"llama": llama, "mamba": mamba}[about["around"]](dict(about["sizes"]))
    rules = SCALED if about["method"] == "ia3" else RULES[about["around"]]
    plan = TRANSFORMS[about["method"]](rules=rules, **about["settings"]).plan(layer.specs())
    base = convert({path.replace("base_layer/", ""): x for path, x in case["param"].items()})
    lifted = plan.lift(jax.tree.map(jnp.asarray, base), jax.random.key(0))
    return Adapted(layer, plan, parts, case["param"], lifted)


@pytest.mark.parametrize("name", CASES)
def test_peft(name):
    case = CASES[name]
    agree(adapted(case), case, lambda arrays: {path: arrays[path] for path in case["grad"]})


def test_every_array_of_every_adapter_is_compared():
    for case in CASES.values():
        adapter = {path for path in case["param"] if "/default" in path and "ranknum" not in path}
        assert adapter == set(case["grad"])


def test_adalora_penalty():
    case = CASES["adalora"]
    ours, factor = adapted(case), case["sizes"]["settings"]["orthogonality"]
    narrow = [
        x.T if "lora_B" in path else x for path, x in case["param"].items() if "lora_A" in path or "lora_B" in path
    ]
    norms = np.array([np.linalg.norm(x @ x.T - np.eye(len(x))) for x in narrow])
    assert_close(factor * np.mean(norms), case["penalty"])
    assert_close(ours.plan.penalty(ours.params({})), factor * 2 * np.mean(norms**2))
