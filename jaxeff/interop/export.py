"""A model as files that run without jaxeff: `jax.export` of reading a prompt and of one token more, and the weights by name.

    prefill.bin          (weights, tokens int32 [B, T], lengths int32 [B]) -> (logits float32 [B, V], state)
    decode.bin           (weights, token int32 [B], state) -> (logits float32 [B, V], state)
    weights.safetensors  weights: one array for each name
    model.json           B, T, V, how many tokens a text may have, and the ids that begin and end one

Who runs them needs jax, flatbuffers for `jax.export`, and safetensors to read the weights:

    import jax.export, safetensors.flax
    weights = safetensors.flax.load_file("weights.safetensors")
    prefill, decode = (jax.export.deserialize(open(f"{name}.bin", "rb").read()) for name in ("prefill", "decode"))
    logits, state = jax.jit(prefill.call)(weights, tokens, lengths)

Rows of a prompt are padded on the right to T; `state` is a list of arrays.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.files import refusals, write_json
from jaxeff.core.precision import POLICIES, Policy
from jaxeff.core.target import lowering_for
from jaxeff.core.tree import map_with_path, paths
from jaxeff.mixers.start import START, length
from jaxeff.models.generate import read_prompt, read_token
from jaxeff.models.lm import LM

PROGRAMS = ("prefill", "decode")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    folder,
    lm: LM,
    params,
    *,
    batch: int = 1,
    prompt: int = 64,
    max_len: int = 256,
    policy: Policy = POLICIES["float32"],
    platforms: Sequence[str] | None = None,
    ids: dict[str, int] | None = None,
) -> None:
    """Writes the files for `batch` texts at once, prompts of at most `prompt` tokens, texts of at most `max_len`.

    platforms: "cpu", "cuda", "tpu": what the programs are for, by default what they are exported on. ids: written to model.json,
    such as {"bos": 1, "eos": 2}.

    Raises UserError for sizes that cannot be, a model whose positions end before, and a folder that holds something.
    """
    if not 1 <= prompt < max_len or batch < 1:
        raise UserError(f"export needs batch >= 1 and 1 <= prompt < max_len, found {batch}, {prompt}, {max_len}")
    for name in platforms or ():
        lookup(dict.fromkeys(PLATFORMS), name, "platform")
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("export needs flatbuffers: pip install 'jaxeff[export]'")
    before = length(params.get(START, {}))
    if lm.max_positions is not None and before + max_len > lm.max_positions:
        raise UserError(f"max_len={max_len} needs {before + max_len} positions; the model has {lm.max_positions}")
    folder = Path(folder)
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"{folder} holds something already: a model is exported into a new folder")
    with lowering_for("any"):
        programs = _programs(lm, params, batch, prompt, max_len - prompt, policy, platforms)
    _write_weights(folder / "weights.safetensors", params)
    for name, program in zip(PROGRAMS, programs, strict=True):
        with refusals(folder):
            (folder / f"{name}.bin").write_bytes(program.serialize())
    sizes = {"batch": batch, "prompt": prompt, "vocab_size": lm.vocab_size, "max_len": max_len}
    write_json(folder / "model.json", sizes | {"platforms": list(programs[0].platforms), "ids": ids or {}})


def _programs(lm: LM, params, batch: int, prompt: int, room: int, policy: Policy, platforms):
    """(reading a prompt, one token more) as `jax.export.Exported`; parameters and state are flat."""

    def whole(weights):
        return map_with_path(lambda path, _: weights[path], params)

    def prefill(weights, tokens_BT, lengths_B):
        logits_BV, state = read_prompt(lm, whole(weights), tokens_BT, lengths_B, room, policy)
        return logits_BV, jax.tree.leaves(state)

    own = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in paths(params).items()}
    tokens = jax.ShapeDtypeStruct((batch, prompt), jnp.int32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    state = jax.eval_shape(lambda w, *x: read_prompt(lm, whole(w), *x, room, policy)[1], own, *tokens)
    leaves, structure = jax.tree.flatten(state)

    def decode(weights, token_B, flat):
        logits_BV, state = read_token(lm, whole(weights), token_B, structure.unflatten(flat), policy)
        return logits_BV, jax.tree.leaves(state)

    def exported(function, *inputs):
        return jax.export.export(jax.jit(function), platforms=platforms)(*inputs)

    return exported(prefill, own, *tokens), exported(decode, own, tokens[1], leaves)


def _write_weights(path: Path, params) -> None:
    from safetensors.numpy import save_file

    with refusals(path):
        save_file({name: np.ascontiguousarray(x) for name, x in paths(params).items()}, path)
