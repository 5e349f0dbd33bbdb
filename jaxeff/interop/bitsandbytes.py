"""Public checkpoints whose matrices bitsandbytes has put into four bits, NF4, with plain or doubly quantized scales.

Of a matrix [outputs, inputs] it cuts the numbers, row after row, into blocks that share a scale. Where blocks end with the rows,
they are our `NF4` blocks, and become such nodes to the bit, their scales in float32 (its second quantization has steps of uneven
size, ours of even). Where they do not, as with inputs that no block divides, and outside of the model's blocks, the matrix
becomes the plain array that bitsandbytes makes of it. Needs `jaxeff[hf]`, and not bitsandbytes.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.tree import map_with_path, paths
from jaxeff.interop.hf.family import Family
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.files import DTYPES, Stored, read_json, stored
from jaxeff.interop.hf.load import CONFIG, arrays, checked, understood
from jaxeff.interop.hf.tensors import sides
from jaxeff.interop.peft import tensors as parts
from jaxeff.interop.peft.modules import Module, modules
from jaxeff.models.lm import LM
from jaxeff.transforms.nf4 import LEVELS, NF4
from jaxeff.transforms.plan import chain, weights

STATE = ".quant_state.bitsandbytes__nf4"
NAMED = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
HARMLESS = frozenset(
    {
        "bnb_4bit_compute_dtype", "bnb_4bit_use_double_quant", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight",
        "llm_int8_skip_modules", "llm_int8_threshold",
    }
)  # fmt: skip
ROWS = (
    ("codes", "codes", "out blocks inside", "blocks inside out"),
    ("absmax", "absmax", "out blocks one", "blocks one out"),
)


@dataclasses.dataclass(frozen=True)
class Coded(Stored):
    """A matrix in four bits. dtype, shape: of what it stands for; codes: two a byte, the first in the high half; levels: the 16
    numbers; absmax: float32, of each block of `block` numbers."""

    codes: Stored
    levels: np.ndarray
    absmax: np.ndarray
    block: int

    def mapped(self) -> np.ndarray:
        """The plain array: level times absmax, the product in float32."""
        packed = self.codes.mapped().ravel()
        numbers = self.levels[np.stack([packed >> 4, packed & 15], 1).ravel()[: np.prod(self.shape)]]
        scale = np.repeat(self.absmax, self.block)[: numbers.size]
        return (numbers * scale).astype(self.dtype).reshape(self.shape)

    def by_rows(self) -> dict[str, np.ndarray]:
        """Codes [outputs, blocks, inside] and absmax [outputs, blocks, 1], where blocks end with rows."""
        shape = (self.shape[0], self.shape[1] // self.block)
        return {"codes": self.codes.mapped().reshape(*shape, -1), "absmax": self.absmax.reshape(*shape, 1)}


def load(folder, dtype=None) -> tuple[tuple[NF4, ...], LM, Any]:
    """(transforms, model, parameters) of a folder: parameters are those of chain(*transforms).plan(model.specs()). dtype: of plain
    arrays, None for what the file has.

    Raises UserError for a checkpoint that is not in NF4, tensors that do not fit each other, and as `hf.load` does.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    _check_config(config.pop("quantization_config", None), folder / CONFIG)
    family, model = understood(config, folder / CONFIG)
    rows, own = family.tensors(model), paths(model.specs())
    found = checked(family, rows, own, _coded(stored(folder, DTYPES | {"U8": np.uint8}), folder), folder)
    dtypes = {str(each.dtype) for each in found.values() if not isinstance(each, Coded)}
    if dtype is None and len(dtypes) != 1:
        raise UserError(f"{folder} holds plain numbers of dtypes {', '.join(sorted(dtypes))}: say which, dtype=...")
    lying = _lying(family, model, found)
    blocks = {path: found[f"{module.name}.weight"].block for module in lying for path in module.paths}
    transforms = tuple(
        NF4(rules=tuple(path for path in blocks if blocks[path] == size), block=size, double=False)
        for size in dict.fromkeys(blocks.values())
    )
    nodes = _nodes(lying, found, chain(*transforms).plan(model.specs()).specs, own)
    rest = [row for row in rows if not set(row.tensor.weights) <= set(nodes)]
    dtype = jnp.dtype(dtype or dtypes.pop())
    plain = arrays(rest, {path: spec for path, spec in own.items() if path not in nodes}, found, dtype, None)
    return transforms, model, map_with_path(lambda path, _: (nodes | plain)[path], model.specs())


def _check_config(config: Any, path: Path) -> None:
    if not isinstance(config, dict):
        raise UserError(f"{path}: quantization_config is missing: hf.load reads plain checkpoints")
    fields = Fields(config, f"{path}: quantization_config")
    if fields("quant_method", str, "bitsandbytes") != "bitsandbytes" or not fields("load_in_4bit", bool, False):
        raise fields.error("load_in_4bit", "must be true, of quant_method 'bitsandbytes'")
    if fields("bnb_4bit_quant_type", str, "fp4") != "nf4":
        raise fields.error("bnb_4bit_quant_type", "is understood as 'nf4' alone")
    for name, value in {"load_in_8bit": False, "_load_in_8bit": False, "_load_in_4bit": True}.items():
        fields.only(name, value)
    fields.only("bnb_4bit_quant_storage", "uint8")
    fields.finish(HARMLESS)


def _coded(found: Mapping[str, Stored], folder: Path) -> dict[str, Stored]:
    """The tensors, those of one matrix in four bits as one."""
    whole = dict(found)
    for name in [name.removesuffix(STATE) for name in found if name.endswith(STATE)]:
        state = _state(whole.pop(f"{name}{STATE}"), name, folder)
        own = {part: _popped(whole, f"{name}.{part}", folder) for part in ("quant_map", "absmax")}
        levels, absmax = (each.mapped() for each in own.values())
        if "nested_blocksize" in state:
            steps, scale = (
                _popped(whole, f"{name}.nested_{part}", folder).mapped() for part in ("quant_map", "absmax")
            )
            scale = np.repeat(scale, state["nested_blocksize"])[: absmax.size]
            absmax = steps[absmax] * scale + np.float32(state["nested_offset"])
        size, codes = int(np.prod(state["shape"])), _popped(whole, name, folder)
        fits = (int(np.prod(codes.shape)), absmax.size) == (-(-size // 2), -(-size // state["blocksize"]))
        if codes.dtype != np.uint8 or absmax.dtype != np.float32 or levels.shape != (16,) or not fits:
            raise UserError(f"{folder}: codes and scales of {name} do not fit its shape {list(state['shape'])}")
        dtype = np.dtype(lookup(NAMED, state["dtype"], f"dtype of {name}"))
        whole[name] = Coded(codes.path, dtype, tuple(state["shape"]), 0, codes, levels, absmax, state["blocksize"])
    bare = next((name for name, each in whole.items() if each.dtype == np.uint8 and not isinstance(each, Coded)), None)
    if bare is not None:
        raise UserError(f"{folder}: {bare} holds bytes, and there is no {bare}{STATE} that says what they are")
    return whole


def _popped(found: dict[str, Stored], name: str, folder: Path) -> Stored:
    if name not in found:
        raise UserError(f"{folder}: tensor {name} is missing")
    return found.pop(name)


def _state(tensor: Stored, name: str, folder: Path) -> dict[str, Any]:
    try:
        state = json.loads(bytes(tensor.mapped()))
        return state | {
            "shape": tuple(state["shape"]),
            "blocksize": int(state["blocksize"]),
            "dtype": str(state["dtype"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: {name}{STATE} cannot be read: {error!r}") from None


def _lying(family: Family, model: LM, found: Mapping[str, Stored]) -> list[Module]:
    """The layers whose matrices become nodes: their blocks are ours, in every layer of one array."""
    known = modules(family, model)[0].values()
    n_in = {path: spec.n_in for path, spec in paths(model.specs()).items()}
    sizes: dict[str, set[int | None]] = {}
    for module in known:
        for path in module.paths:
            sizes.setdefault(path, set()).add(_block(module, path, n_in[path], found[f"{module.name}.weight"]))
    return [module for module in known if all(len(sizes[p]) == 1 and None not in sizes[p] for p in module.paths)]


def _block(module: Module, path: str, n_in: int, matrix: Stored) -> int | None:
    """Numbers of a block, None where blocks are not ours."""
    cut = parts.Cut.of(module.weight.tensor, path, n_in)
    axes = len(sides(module.weight.tensor.weights[path])[0])
    last = cut.inputs == (axes - 1,) and cut.their_in.strip("()") == cut.our_in
    if not isinstance(matrix, Coded) or not last or matrix.shape[1] % matrix.block:
        return None
    return matrix.block if np.array_equal(matrix.levels, np.asarray(LEVELS, np.float32)) else None


def _nodes(lying: list[Module], found: Mapping[str, Stored], specs: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """path -> node of values."""
    n_in = {path: spec.n_in for path, spec in own.items()}
    rows = [parts.part(module, row, n_in) for module in lying for row in ROWS]
    tensors = {
        f"{parts.PREFIX}{module.name}.{end}": x
        for module in lying
        for end, x in found[f"{module.name}.weight"].by_rows().items()
    }
    values, known = parts.arrays(rows, tensors, paths(specs)), weights(specs)
    return {
        path: dataclasses.replace(
            known[path], codes=jnp.asarray(values[f"{path}/codes"]), absmax=jnp.asarray(values[f"{path}/absmax"])
        )
        for module in lying
        for path in module.paths
    }
