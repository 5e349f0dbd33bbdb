"""From a folder with `config.json` and safetensors to a model and its parameters."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.core.errors import UserError, lookup, nearest
from jaxeff.core.sharding import RULES, Rules, shardings
from jaxeff.core.tree import map_with_path, paths
from jaxeff.interop.hf.family import Family
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.files import Stored, read_json, stored
from jaxeff.interop.hf.registry import FAMILIES
from jaxeff.interop.hf.tensors import Placed
from jaxeff.models.lm import LM

CONFIG = "config.json"
ALIGNED = 64  # bytes
PIECE = 2**22  # numbers that one thread copies at once
# Of a transposed source so many rows are copied side by side first, a little apart, so that a column of them does not fall on one
# place of the processor's cache; and a row of the result is then written by whole cache lines.
ROWS, PAD = 128, 16


def load(folder, dtype=None, mesh=None, rules: Rules = RULES) -> tuple[LM, Any]:
    """(model, parameters) of a folder. dtype: of the parameters, None for what the file has. mesh: the parameters are laid out on
    it by `rules`; each device is given its own part of the mapped file and nothing else.

    Raises UserError for an unknown `model_type`, fields that are not understood, tensors that are missing, left over, of other
    shapes or of several dtypes, damaged files and pickles.
    """
    folder = Path(folder)
    family, model = read_config(folder)
    found = stored(folder)
    rows = family.tensors(model)
    own = paths(model.specs())
    found = checked(family, rows, own, found, folder)
    dtypes = {str(each.dtype) for each in found.values()}
    if dtype is None and len(dtypes) > 1:
        raise UserError(f"{folder} holds numbers of several dtypes, {', '.join(sorted(dtypes))}: say which, dtype=...")
    dtype = jnp.dtype(dtype or dtypes.pop())
    layouts = None if mesh is None else paths(shardings(model.specs(), mesh, rules))
    own = arrays(rows, own, found, dtype, layouts)
    return model, map_with_path(lambda path, spec: own[path], model.specs())


def read_config(folder) -> tuple[Family, LM]:
    """(family, model) of a folder's `config.json`. Raises UserError as `load` does."""
    path = Path(folder) / CONFIG
    return understood(read_json(path), path)


def understood(config: Mapping[str, Any], path: Path) -> tuple[Family, LM]:
    """(family, model) of a configuration that lies at `path`. Raises UserError as `load` does."""
    if "model_type" not in config:
        raise UserError(f"{path}: model_type is missing")
    family = lookup(FAMILIES, config["model_type"], "model_type that can be read")
    fields = Fields(config, str(path))
    _check_code(fields, config.get("auto_map"), family)
    try:
        model = family.read(fields)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    fields.finish(family.harmless)
    return family, model


def _check_code(fields: Fields, code: Any, family: Family) -> None:
    """A checkpoint that brings code of its own may compute something else; many bring what has become the family's."""
    fields("auto_map", dict, None)
    stem = family.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    for name in (code or {}).values():
        if not isinstance(name, str) or not name.rpartition(".")[2].startswith(stem):
            raise fields.error("auto_map", f"names code that is not {stem}'s")


def checked(
    family: Family, rows: Iterable[Placed], own: Mapping[str, Any], found: Mapping[str, Stored], folder: Path
) -> dict[str, Stored]:
    """The file's tensors by the names of the rows. Raises UserError for those that are missing, left over or of other shapes."""
    if family.prefix and not any(name.startswith(family.prefix) for name in found):
        top = {row.tensor.name for row in rows if not row.tensor.name.startswith(family.prefix)}
        found = {name if name in top else family.prefix + name: tensor for name, tensor in found.items()}
    wanted = {row.tensor.name: row.shape(own) for row in rows}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}; {nearest(missing[0], found)}"
        )
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise UserError(
                f"{folder}: {name} has the shape {list(found[name].shape)}; {CONFIG} makes it {list(shape)}"
            )
    left = [name for name in found if name not in wanted and not re.fullmatch(family.ignored, name)]
    left = [name for name in left if not _copy(name, found)]
    if left:
        raise UserError(
            f"{folder}: {len(left)} tensors have no place in the model that {CONFIG} describes, the first is {left[0]};"
            f" {nearest(left[0], wanted)}"
        )
    return {name: found[name] for name in wanted}


def _copy(name: str, found: Mapping[str, Stored]) -> bool:
    """Whether a tensor is a head that is stored again though it is the embedding."""
    head = found[name]
    same = (each for other, each in found.items() if "emb" in other and each.shape == head.shape)
    return name == "lm_head.weight" and any(np.array_equal(head.mapped(), each.mapped()) for each in same)


def arrays(rows: Iterable[Placed], own, found: Mapping[str, Stored], dtype, layouts) -> dict[str, jax.Array]:
    """Our weights by path, copied once from the mapped files to where they stay."""
    sources: dict[str, list[Placed]] = {}
    for row in rows:
        for path in row.tensor.weights:
            sources.setdefault(path, []).append(row)

    def copy(out: np.ndarray, path: str, row: Placed, index: tuple[slice, ...]) -> None:
        source = found[row.tensor.name]
        fill(out, dict(row.split(source.mapped(), own))[path][index], source, pool)

    def part(path: str, index: tuple[slice, ...]) -> np.ndarray:
        """`index` of the weight: a layer after the other where it is stacked."""
        bounds = [range(*i.indices(n)) for i, n in zip(index, own[path].shape, strict=True)]
        out = _empty(tuple(map(len, bounds)), dtype)
        if sources[path][0].layer is None:
            copy(out, path, sources[path][0], index)
        else:
            by_layer = {row.layer: row for row in sources[path]}
            for i, layer in enumerate(bounds[0]):
                copy(out[i], path, by_layer[layer], index[1:])
        return out

    def put(path: str) -> jax.Array:
        shape = own[path].shape
        if layouts is None:
            return jax.device_put(part(path, (slice(None),) * len(shape)))
        return jax.make_array_from_callback(shape, layouts[path], lambda index: part(path, index))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {path: put(path) for path in own}


def _empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Memory that a CPU device takes over as it is, which it does where the start is aligned."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNED, np.uint8)
    start = -raw.ctypes.data % ALIGNED
    return raw[start : start + size].view(dtype).reshape(shape)


def fill(out: np.ndarray, view: np.ndarray, source: Stored, pool: ThreadPoolExecutor) -> None:
    """out[...] = view, in pieces at once, whatever the order of the axes in memory. view: of `source`, mapped."""
    shape = coalesced(out, view)
    out, view = out.reshape(shape), view.reshape(shape)
    axis = int(np.argmax([n > 1 and stride for n, stride in zip(shape, view.strides, strict=True)]))
    out, view = np.moveaxis(out, axis, 0), np.moveaxis(view, axis, 0)  # the source's rows come first
    n, row = len(view), view[0].size
    piece = max(1, PIECE // row)

    def copy(start: int) -> None:
        end = min(start + piece, n)
        if view.ndim != 2:
            here = view[start:end]
            out[start:end] = source.read(here, np.empty(here.shape, here.dtype))
            return
        read, apart = np.empty((ROWS, row), view.dtype), np.empty((ROWS, row + PAD), out.dtype)[:, :row]
        for i in range(start, end, ROWS):
            k = min(end - i, ROWS)
            apart[:k] = source.read(view[i : i + k], read[:k])
            out[i : i + k] = apart[:k]

    list(pool.map(copy, range(0, n, piece)))


def coalesced(*arrays: np.ndarray) -> tuple[int, ...]:
    """The shape of fewest axes in which all arrays, of one shape, are still views of their memory."""
    shape: list[int] = [1]
    strides = [[array.itemsize] for array in arrays]
    for axis, n in enumerate(arrays[0].shape):
        inner = [array.strides[axis] for array in arrays]
        if n == 1:
            continue
        if shape == [1] or all(last[-1] == stride * n for last, stride in zip(strides, inner, strict=True)):
            shape[-1] *= n
            strides = [[*last[:-1], stride] for last, stride in zip(strides, inner, strict=True)]
        else:
            shape.append(n)
            strides = [[*last, stride] for last, stride in zip(strides, inner, strict=True)]
    return tuple(shape)
