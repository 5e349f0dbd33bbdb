"""An adapter of ours as a folder that PEFT loads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.files import refusals, write_json
from jaxeff.core.tree import paths
from jaxeff.interop.hf.files import DTYPES, read_json
from jaxeff.interop.peft import start
from jaxeff.interop.peft.base import Base
from jaxeff.interop.peft.config import HARMLESS
from jaxeff.interop.peft.load import CONFIG, TENSORS, read
from jaxeff.interop.peft.methods import METHODS
from jaxeff.interop.peft.modules import AdapterFields, check_read, named
from jaxeff.interop.peft.tensors import parts
from jaxeff.mixers.start import START
from jaxeff.models.lm import LM
from jaxeff.transforms import NF4, Int4, Int8, QLoRA
from jaxeff.transforms.plan import chain, weights

FEW_BITS = (NF4, Int4, Int8)


def save(
    folder, model: LM, transforms, params, base_name: str | None = None, like=None, family: str | None = None
) -> None:
    """Writes `adapter_config.json` and safetensors into a new or empty folder: the adapter alone, in its own dtype.

    transforms: what made the parameters of the model's, one or several: adapters of one kind, and before them what has put the base
    in few bits, which is not written. base_name: of the public checkpoint that the adapter is for. like: a folder of PEFT whose
    fields are kept, all of them where they say what these transforms do, else those that change no logits. family: as in `load`.

    Raises UserError for adapters that PEFT does not have in this form, parameters that these transforms do not make, and a folder
    that holds something.
    """
    folder, own = Path(folder), _adapters(transforms)
    plan = chain(*_flat(transforms)).plan(model.specs(), model=model)
    arrays = _checked(paths(plan.specs), paths(params))
    if type(own[0]) in start.STARTS.values():
        fields, tensors = start.write(own[0], model), {start.LEARNED: start.tensor(own[0], params[START], model)}
    else:
        fields, tensors = _weights(own, plan.specs, arrays, Base.of(model, family))
    fields |= {"base_model_name_or_path": base_name, "task_type": "CAUSAL_LM", "inference_mode": True}
    if like is not None:
        fields = _like(fields, Path(like) / CONFIG, own, model, family)
    _write(folder, fields, tensors)


def _weights(
    own: Sequence[Any], specs: Any, arrays: Mapping[str, Any], base: Base
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields, tensors) of adapters beside weights."""
    kind = next(kind for kind, method in METHODS.items() if type(own[0]) in method.kinds)
    nodes = {path: node for path, node in weights(specs).items() if getattr(node, "stage", None) == "adapter"}
    names = _names(nodes, base)
    fields = {"peft_type": kind, "target_modules": named(names, base.modules)}
    if kind != "IA3":
        fields["bias"] = "none"
    fields |= METHODS[kind].write(own, names, nodes, base)
    rows = parts((base.modules[name] for name in names), nodes, base.n_in())
    tensors = {part.name: part.join(arrays) for own in rows.values() for part in own}
    tensors, more = METHODS[kind].fold(tensors, names, base)
    return fields | more, tensors


def _names(nodes: Mapping[str, Any], base: Base) -> list[str]:
    """Of the linear layers whose weights have adapters. Raises UserError where PEFT has none there."""
    left = set(nodes)
    names = []
    for name, module in base.modules.items():
        inside = [path for path in module.paths if path in nodes]
        if inside and len(inside) < len(module.paths):
            without = next(path for path in module.paths if path not in nodes)
            raise UserError(
                f"{inside[0]} has an adapter and {without} has none: in a {base.family.model_type} both are {name}, give both one"
            )
        names += [name] * bool(inside)
        left -= set(inside)
    if left:
        raise UserError(f"{min(left)} is no linear layer of a {base.family.model_type}: PEFT has no adapter there")
    check_read(names, base.family, base.family.architecture)
    return names


def _flat(transforms: Any) -> list[Any]:
    """Transforms without what holds several."""
    if isinstance(transforms, (chain, QLoRA)):
        return _flat(transforms.transforms if isinstance(transforms, chain) else transforms.parts)
    return (
        [one for each in transforms for one in _flat(each)] if isinstance(transforms, (list, tuple)) else [transforms]
    )


def _adapters(transforms: Any) -> list[Any]:
    """Those that are adapters. Raises UserError where there are none, several kinds, or others beside them."""
    kinds = {kind.__name__: kind for method in METHODS.values() for kind in method.kinds}
    kinds |= {kind.__name__: kind for kind in start.STARTS.values()}
    own = [one for one in _flat(transforms) if not isinstance(one, FEW_BITS)]
    for one in own:
        lookup(kinds, type(one).__name__, "adapter of PEFT")
    if len({type(one) for one in own}) != 1:
        found = ", ".join(sorted({type(one).__name__ for one in own})) or "none"
        raise UserError(f"a folder of PEFT holds one kind of adapter, found {found}")
    return own


def _checked(specs: Mapping[str, Any], arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays. Raises UserError unless they are of these Specs."""
    for path in (*specs, *arrays):
        if path not in specs or path not in arrays or tuple(arrays[path].shape) != tuple(specs[path].shape):
            ours, theirs = (list(tree[path].shape) if path in tree else "absent" for tree in (specs, arrays))
            raise UserError(f"these parameters are not of these transforms: {path} is {theirs}, expected {ours}")
    return arrays


def _like(fields: dict[str, Any], path: Path, own: Sequence[Any], model: LM, family: str | None) -> dict[str, Any]:
    """The fields of another folder where they say the same, else these and what of those changes no logits."""
    theirs = read_json(path)
    try:
        same = list(read(AdapterFields(theirs, str(path)), model, family)[0]) == list(own)
    except UserError:
        same = False
    if not same:
        return {name: value for name, value in theirs.items() if name in HARMLESS and name not in fields} | fields
    cut = ("rank_pattern",) if fields["peft_type"] == "ADALORA" else ()
    ours = {name: fields[name] for name in ("base_model_name_or_path", "inference_mode") if fields[name] is not None}
    return theirs | ours | {name: fields[name] for name in cut}


def _write(folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    for name, tensor in tensors.items():
        if tensor.dtype not in map(np.dtype, DTYPES.values()):
            raise UserError(f"{name} holds {tensor.dtype}, which cannot be written: cast it to float32 or bfloat16")
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"{folder} holds something already: an adapter is saved into a new folder")
    with refusals(folder / TENSORS):
        save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / TENSORS, {"format": "pt"})
    write_json(folder / CONFIG, dict(fields))
