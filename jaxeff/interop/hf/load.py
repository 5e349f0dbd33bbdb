"""From a folder with `config.json` and safetensors to a model and its parameters."""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

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
    found = _checked(family, rows, own, found, folder)
    dtypes = {str(each.dtype) for each in found.values()}
    if dtype is None and len(dtypes) > 1:
        raise UserError(f"{folder} holds numbers of several dtypes, {', '.join(sorted(dtypes))}: say which, dtype=...")
    dtype = jnp.dtype(dtype or dtypes.pop())
    layouts = None if mesh is None else paths(shardings(model.specs(), mesh, rules))
    arrays = _arrays(rows, own, found, dtype, layouts)
    return model, map_with_path(lambda path, spec: arrays[path], model.specs())


def read_config(folder) -> tuple[Family, LM]:
    """(family, model) of a folder's `config.json`. Raises UserError as `load` does."""
    path = Path(folder) / CONFIG
    config = read_json(path)
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


def _checked(
    family: Family, rows: Iterable[Placed], own: Mapping[str, Any], found: Mapping[str, Stored], folder: Path
) -> dict[str, Stored]:
    """The file's tensors by the names of the rows."""
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
    return name == "lm_head.weight" and any(np.array_equal(head.read(), each.read()) for each in same)


def _arrays(rows, own, found: Mapping[str, Stored], dtype, layouts) -> dict[str, jax.Array]:
    """Our weights by path, each filled layer by layer from the mapped files."""
    arrays: dict[str, jax.Array] = {}
    for row in rows:
        for path, view in row.split(found[row.tensor.name].read(), own):
            layout = None if layouts is None else layouts[path]
            if row.layer is None:
                arrays[path] = _put(view, dtype, layout)
                continue
            if path not in arrays:
                arrays[path] = jnp.zeros(own[path].shape, dtype, device=layout)
            inner = None if layout is None else _without_layers(layout)
            arrays[path] = _set(arrays[path], _put(view, dtype, inner), row.layer)
    return arrays


def _put(view: np.ndarray, dtype, layout) -> jax.Array:
    """A view of a file on its devices: copied once, each device's part by itself."""
    if layout is None:
        return jnp.asarray(view).astype(dtype)
    return jax.make_array_from_callback(view.shape, layout, lambda index: np.asarray(view[index]).astype(dtype))


def _set(stacked: jax.Array, layer: jax.Array, i: int) -> jax.Array:
    """`stacked` with its i-th entry written, in place."""
    return _setter(stacked.sharding)(stacked, layer, i)


@functools.cache
def _setter(layout):
    def write(stacked, layer, i):
        return jax.lax.dynamic_update_index_in_dim(stacked, layer, i, 0)

    return jax.jit(write, donate_argnums=0, out_shardings=layout)


def _without_layers(layout: NamedSharding) -> NamedSharding:
    """That of one entry of a stacked weight."""
    return NamedSharding(layout.mesh, PartitionSpec(*layout.spec[1:]))
