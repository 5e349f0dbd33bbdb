"""A model and its parameters as a folder that Transformers loads."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.files import refusals, write_json
from jaxeff.core.tree import paths
from jaxeff.core.weight import is_weight
from jaxeff.data.public_tokenizer import FILES
from jaxeff.interop.hf.family import Family, layers
from jaxeff.interop.hf.fields import HARMLESS, Fields
from jaxeff.interop.hf.files import DTYPES, read_json, write
from jaxeff.interop.hf.load import CONFIG
from jaxeff.interop.hf.registry import FAMILIES
from jaxeff.mixers.gqa import GQA
from jaxeff.mixers.mamba import Mamba
from jaxeff.mixers.mamba2 import Mamba2
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.rglru import RGLRU
from jaxeff.mixers.rwkv4 import RWKV4, RWKV4Channel
from jaxeff.mixers.rwkv7 import RWKV7, RWKV7Channel
from jaxeff.models.lm import LM
from jaxeff.models.stack import stages

# What open sizes come to; and what is the same however it is written or computed, or whatever it starts from.
RESOLVED = {
    GQA: lambda m: dict(
        n_heads=m.heads,
        n_kv_heads=m.kv_heads,
        head_dim=m.head,
        scale=m.scale or m.head**-0.5,
        biases=_sorted(m),
        impl=None,
    ),
    MLP: lambda m: dict(d_hidden=m.hidden, biases=_sorted(m)),
    Mamba: lambda m: dict(dt_rank=m.rank, biases=_sorted(m), dt_range=Mamba.dt_range),
    Mamba2: lambda m: dict(head_dim=m.head, norm_groups=m.normed, dt_range=Mamba2.dt_range, a_range=Mamba2.a_range),
    RGLRU: lambda m: dict(d_rnn=m.rnn, n_heads=m.heads, biases=_sorted(m), a_range=RGLRU.a_range),
    RWKV4: lambda m: dict(d_attention=m.attention),
    RWKV4Channel: lambda m: dict(d_hidden=m.hidden),
    RWKV7: lambda m: dict(head_dim=m.head, ranks=(m.rank_decay, m.rank_rate, m.rank_value, m.rank_gate)),
    RWKV7Channel: lambda m: dict(d_hidden=m.hidden),
}


def save(folder, model: LM, params, like=None, family: str | None = None) -> None:
    """Writes `config.json` and safetensors, in the parameters' dtype, into a new or empty folder.

    like: a folder of a public checkpoint whose tokenizer files, special tokens and other fields that change no logits go along.
    family: the `model_type` to write; None: that of `like`, else the first that has such models.

    Raises UserError where no family of public checkpoints has such a model, for parameters that are not plain arrays (merge them
    first) or of several dtypes, and for a folder that holds something.
    """
    folder = Path(folder)
    dtype = _dtype(params)
    source = {} if like is None else read_json(Path(like) / CONFIG)
    found, config = written(model, family or source.get("model_type"))
    along = HARMLESS | (found.harmless if found.model_type == source.get("model_type") else frozenset())
    config |= {name: value for name, value in source.items() if name in along and name not in config}
    config |= {"architectures": [found.architecture], "model_type": found.model_type, "torch_dtype": dtype.name}
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"{folder} holds something already: a model is saved into a new folder")
    rows = {row.tensor.name: row for row in found.tensors(model)}
    own, arrays = paths(model.specs()), paths(params)
    sizes = {name: math.prod(row.shape(own)) * dtype.itemsize for name, row in rows.items()}
    write_json(folder / CONFIG, config)
    for name in FILES if like is not None else ():
        if (Path(like) / name).is_file():
            with refusals(folder / name):
                shutil.copyfile(Path(like) / name, folder / name)
    write(folder, sizes, lambda name: rows[name].join(arrays))


def written(model: LM, family: str | None = None) -> tuple[Family, dict[str, Any]]:
    """(family, fields of its configuration) of a model. Raises UserError where no family, or not the named one, has such a one."""
    reasons = {}
    for name in FAMILIES if family is None else [family]:
        candidate = lookup(FAMILIES, name, "model_type that can be written")
        try:
            config = json.loads(json.dumps(dict(candidate.write(model))))
            again = candidate.read(Fields(config | {"model_type": name}, name))
            candidate.tensors(model)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            reasons[name] = str(error)
            continue
        reasons[name] = difference(canonical(model), canonical(again))
        if reasons[name] is None:
            return candidate, config
    why = {reason: [name for name, r in reasons.items() if r == reason] for reason in reasons.values()}
    listed = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in why.items())
    raise UserError(f"no public checkpoint holds such a model: {listed}")


def canonical(model: LM) -> LM:
    """The model with every size told, in the fewest stages, computed in the plain way: equal for models that compute the same."""
    blocks = [dataclasses.replace(b, mixer=_resolved(b.mixer), mlp=_resolved(b.mlp)) for b in layers(model)]
    return dataclasses.replace(model, stages=stages(blocks), remat="none", scan=True)


def _resolved(part):
    told = RESOLVED.get(type(part))
    return part if told is None else dataclasses.replace(part, **told(part))


def _sorted(part) -> tuple[str, ...]:
    return tuple(sorted(set(part.biases)))


def difference(ours, theirs, path: str = "") -> str | None:
    """Where two values differ first, in words; None where they do not."""
    if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
        fields = ((f.name, getattr(ours, f.name), getattr(theirs, f.name)) for f in dataclasses.fields(ours))
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        fields = ((str(i), *pair) for i, pair in enumerate(zip(ours, theirs, strict=True)))
    else:
        return None if ours == theirs else f"{path} is {ours!r}, where it would be {theirs!r}"
    found = (difference(a, b, f"{path}.{name}".lstrip(".")) for name, a, b in fields)
    return next((reason for reason in found if reason is not None), None)


def _dtype(params) -> np.dtype:
    leaves: Iterable[Any] = paths(params, is_leaf=is_weight).items()
    for path, leaf in leaves:
        if is_weight(leaf):
            raise UserError(f"{path} is a {type(leaf).__name__}: merge the transforms into plain arrays first")
    dtypes = {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(params)}
    if len(dtypes) > 1:
        raise UserError(f"the parameters have several dtypes, {', '.join(sorted(map(str, dtypes)))}: cast them to one")
    dtype = dtypes.pop()
    if dtype not in map(np.dtype, DTYPES.values()):
        raise UserError(f"parameters of {dtype} cannot be written: cast them to float32 or bfloat16")
    return dtype
