"""From a folder that PEFT saved to our transforms and the parameters with the adapter in them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxeff.core.errors import UserError, lookup, nearest
from jaxeff.core.tree import paths
from jaxeff.interop.hf.files import header, read_json
from jaxeff.interop.peft import start
from jaxeff.interop.peft.base import Base
from jaxeff.interop.peft.config import HARMLESS, restrict
from jaxeff.interop.peft.methods import METHODS
from jaxeff.interop.peft.modules import AdapterFields, chosen
from jaxeff.interop.peft.tensors import Part, arrays, parts
from jaxeff.models.lm import LM
from jaxeff.transforms.dora import DoRAWeight, norms
from jaxeff.transforms.node import Node
from jaxeff.transforms.plan import chain, map_weights, weights

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def load(folder, model: LM, params, family: str | None = None, specs=None) -> tuple[tuple[Any, ...], Any]:
    """(transforms, parameters with the adapter) of a folder: those of chain(*transforms).plan(...), in the adapter's dtype.

    family: the model's `model_type`; None: the first that has such models. specs: of the parameters where they are no longer the
    model's own, a plan's in few bits.

    VeRA's factors are the folder's: transforms that plan and lift again draw other ones.

    Raises UserError for an adapter that is not understood: an unknown `peft_type` or field, tensors that are missing, left over or
    of other shapes, layers of one array of ours with other adapters, damaged files and pickles.
    """
    folder = Path(folder)
    fields, found = AdapterFields(read_json(folder / CONFIG), str(folder / CONFIG)), _tensors(folder)
    specs = model.specs() if specs is None else specs
    kind = fields("peft_type", str)
    if kind in start.STARTS:
        transform = read(fields, model, family)[0][0]
        chain(transform).plan(specs, model=model)
        _check(found, {start.LEARNED: None}, folder)
        learned = start.learned(transform, found[start.LEARNED], model, str(folder))
        return (transform,), start.lifted(params, _on_device(learned))
    transforms, names, base = read(fields, model, family)
    plan = chain(*transforms).plan(specs)
    nodes, own = weights(plan.specs), paths(plan.specs)
    rows = _parts(parts((base.modules[name] for name in names), nodes, base.n_in()))
    found = METHODS[kind].unfold(found, fields, names, base)
    _check(found, {part.name: part.shape(own) for part in rows}, folder)
    values = arrays(rows, found, own)
    return transforms, map_weights(lambda path, w: _filled(nodes[path], path, w, values), params)


def read(fields: AdapterFields, model: LM, family: str | None) -> tuple[tuple[Any, ...], list[str], Base | None]:
    """(transforms, names of the layers they are on, the base) of a configuration, all of whose fields are understood.

    Raises UserError as `load` does.
    """
    kind = fields("peft_type", str)
    lookup(METHODS | start.STARTS, kind, "peft_type that can be read")
    restrict(fields)
    try:
        if kind in start.STARTS:
            transforms, names, base = (start.read(kind, fields, model),), [], None
            fields.finish(HARMLESS | start.HARMLESS)
        else:
            base = Base.of(model, family)
            names = chosen(fields, base.modules, base.outside, base.family)
            transforms = METHODS[kind].read(fields, names, base)
            fields.finish(HARMLESS | METHODS[kind].harmless)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{fields.place}: {error}") from None
    return transforms, names, base


def _parts(found: Mapping[str, list[Part]]) -> list[Part]:
    return [part for own in found.values() for part in own]


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors by name, mapped. Raises UserError for pickles and damaged files."""
    if not (folder / TENSORS).is_file():
        pickles = sorted(path.name for path in folder.glob("adapter_model.*"))
        says = f": {pickles[0]} is a pickle, which can run code when it is opened" if pickles else ""
        raise UserError(f"{folder} has no {TENSORS}{says}")
    return {name: stored.mapped() for name, stored in header(folder / TENSORS).items()}


def _check(found: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...] | None], folder: Path) -> None:
    """Raises UserError unless the tensors are those wanted; of the shape None any."""
    for one, other, says in (
        (wanted, found, "are missing"),
        (found, wanted, f"have no place in what {CONFIG} describes"),
    ):
        odd = [name for name in one if name not in other]
        if odd:
            raise UserError(f"{folder}: {len(odd)} tensors {says}, the first is {odd[0]}; {nearest(odd[0], other)}")
    for name, shape in wanted.items():
        if shape not in (None, found[name].shape):
            raise UserError(
                f"{folder}: {name} has the shape {list(found[name].shape)}; {CONFIG} makes it {list(shape)}"
            )


def _filled(node: Any, path: str, base: Any, values: Mapping[str, np.ndarray]) -> Any:
    """A node of Specs as one of values around `base`; a weight without an adapter as it is."""
    own = {name.removeprefix(f"{path}/"): x for name, x in values.items() if name.rpartition("/")[0] == path}
    own = {name: jnp.asarray(x) for name, x in own.items()}
    if isinstance(node, DoRAWeight):
        lora = _filled(node.lora, f"{path}/lora", base, values)
        return dataclasses.replace(node, lora=lora, norm=norms(base, node.spec()).astype(lora.a.dtype), **own)
    return dataclasses.replace(node, base=base, **own) if own and isinstance(node, Node) else base


def _on_device(tree: Any) -> Any:
    return {name: _on_device(x) if isinstance(x, dict) else jnp.asarray(x) for name, x in tree.items()}
