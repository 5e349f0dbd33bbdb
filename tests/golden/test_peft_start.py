"""Prompt and prefix tuning against PEFT's values; see make_peft_start.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.tree import paths
from jaxeff.mixers import GQA, MLP
from jaxeff.mixers.norm import RMSNorm
from jaxeff.models import LM, Block, Stage
from jaxeff.transforms import PrefixTuning, PromptTuning, chain
from jaxeff.transforms.plan import map_weights
from tests.closeness import assert_close
from tests.golden.published import GRADIENT, OUTPUT, cases

CASES = cases("peft_start")
NAMES = {"mixer_norm/scale": "input_layernorm", "mlp_norm/scale": "post_attention_layernorm"}
NAMES |= {f"mixer/{name}": f"self_attn/{name}_proj" for name in "qkvo"}
NAMES |= {f"mlp/{name}": f"mlp/{name}_proj" for name in ("gate", "up", "down")}
METHODS = {"prompt": PromptTuning(3), "prefix": PrefixTuning(slots=3)}


def llama(sizes):
    """Our model of the case."""
    d, hidden, layers = (sizes.pop(name) for name in ("d_model", "d_hidden", "n_layers"))
    block = Block(GQA(**sizes), MLP(d_hidden=hidden), RMSNorm(1e-5))
    return LM(16, d, (Stage((block,), layers),), norm=RMSNorm(1e-5))


def converted(model, w):
    """Arrays of the published model as our parameters."""

    def one(path, spec):
        if path == "embed":
            return jnp.asarray(w["embed_tokens/weight"])
        if path == "norm/scale":
            return jnp.asarray(w["norm/weight"])
        name = NAMES[path.removeprefix("blocks/0/")]
        layers = [w[f"layers/{i}/{name}/weight"].T.reshape(spec.shape[1:]) for i in range(spec.shape[0])]
        return jnp.asarray(np.stack(layers))

    return map_weights(one, model.specs())


def start(model, name, learned):
    """PEFT's array as ours: of a prefix [P, layers, keys and values, K, C]."""
    if name == "prompt":
        return {"prompt": learned}
    mixer = model.stages[0].pattern[0].mixer
    kv = learned.reshape(len(learned), model.n_layers, 2, mixer.n_kv_heads, mixer.head_dim)
    return {"state": {f"0/mixer/values/{part}": jnp.swapaxes(kv[:, :, i], 0, 1) for i, part in enumerate("kv")}}


@pytest.mark.parametrize("name", CASES)
def test_peft(name):
    case = CASES[name]
    model = llama(dict(case["sizes"]))
    params = converted(model, case["param"])
    lifted = chain(METHODS[name]).plan(model.specs(), model=model).lift(params, jax.random.key(0))

    def logits(learned):
        own = start(model, name, learned)
        assert {path: x.shape for path, x in paths(own).items()} == {
            path: x.shape for path, x in paths(lifted["start"]).items()
        }
        return model.apply(params | {"start": own}, jnp.asarray(case["x"], jnp.int32)).y

    y, pullback = jax.vjp(logits, jnp.asarray(case["param"]["learned"]))
    assert_close(y, case["y"], OUTPUT, "logits")
    assert_close(pullback(jnp.asarray(case["cotangent"]))[0], case["grad"]["learned"], GRADIENT, "gradient")
