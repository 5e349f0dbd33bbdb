"""Adapters beside weights: the fields of PEFT's configuration and our transforms, in both directions."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.core.tree import match
from jaxeff.interop.peft.base import Base, number
from jaxeff.interop.peft.modules import AdapterFields, by_path, named
from jaxeff.interop.peft.tensors import PREFIX
from jaxeff.transforms import IA3, AdaLoRA, DoRA, LoRA, VeRA
from jaxeff.transforms.dora import DoRAWeight
from jaxeff.transforms.rank import largest

MORE = 1e-5  # than the rank is what PEFT's AdaLoRA divides by
STEPS = 1000  # of a run, when shares of it are written as steps
Tensors = dict[str, np.ndarray]
FACTORS = {"vera_A": "base_model.vera_A", "vera_B": "base_model.vera_B"}


@dataclasses.dataclass(frozen=True)
class Method:
    """A `peft_type`. kinds: our transforms. read(fields, names, base): the transforms for adapters on the layers of these names.
    write(transforms, names, nodes, base): fields but for what all have; nodes: of Specs by path. unfold(tensors, fields, names,
    base): an adapter's tensors as those of each layer alone; fold(tensors, names, base): back, and fields that follow from them.
    harmless: fields that change no logits."""

    kinds: tuple[type, ...]
    read: Callable[[AdapterFields, Sequence[str], Base], tuple[Any, ...]]
    write: Callable[[Sequence[Any], Sequence[str], Mapping[str, Any], Base], dict[str, Any]]
    unfold: Callable[[Tensors, AdapterFields, Sequence[str], Base], Tensors] = lambda tensors, *_: tensors
    fold: Callable[[Tensors, Sequence[str], Base], tuple[Tensors, dict[str, Any]]] = lambda tensors, *_: (tensors, {})
    harmless: frozenset[str] = frozenset()


def _usual(values: Iterable[Any]) -> Any:
    """The most frequent one, of equal ones the first."""
    return Counter(values).most_common(1)[0][0]


def _same(transforms: Sequence[Any], name: str) -> Any:
    """A setting that they agree on. Raises UserError where they do not."""
    values = list(dict.fromkeys(getattr(t, name) for t in transforms))
    if len(values) > 1:
        kind = type(transforms[0]).__name__
        raise UserError(f"{kind}.{name} is {' and '.join(map(repr, values))}: PEFT has one for all layers")
    return values[0]


def _rules(found: Mapping[str, int], rank: int) -> tuple[Any, ...]:
    return tuple(path if own == rank else (path, own) for path, own in found.items())


def _in_all(names: Sequence[str], settings: Mapping[str, Any], base: Base, what: str) -> dict[str, Any]:
    """name -> what the weights in that layer agree on. Raises UserError where they do not."""
    found = {}
    for name in names:
        own = {path: settings[path] for path in base.modules[name].paths}
        if len(set(own.values())) > 1:
            listed = ", ".join(f"{path} {value}" for path, value in own.items())
            raise UserError(f"{what} of {name} is one in PEFT, and differs here: {listed}")
        found[name] = next(iter(own.values()))
    return found


def _pattern(settings: Mapping[str, Any], usual: Any, base: Base) -> dict[str, Any]:
    """Names of layers whose setting is not the usual one."""
    found = {}
    for value in dict.fromkeys(settings.values()):
        if value != usual:
            found |= dict.fromkeys(
                named([name for name in settings if settings[name] == value], base.modules), number(value)
            )
    return found


def _keyed(pattern: Mapping[str, Any], name: str, default: Any, fields: AdapterFields, field: str) -> Any:
    """The setting of the first regex that is a name's end."""
    found = (value for regex, value in pattern.items() if fields.compiled(rf"(.*\.)?({regex})$", field).match(name))
    return next(found, default)


def _read_lora(fields: AdapterFields, names: Sequence[str], base: Base) -> tuple[Any, ...]:
    fields.only("init_lora_weights", True, False, "gaussian")
    rank, alpha = fields("r", int, 8), fields("lora_alpha", float, 8.0)
    ranks, alphas = fields.numbers("rank_pattern", int), fields.numbers("alpha_pattern", float)
    kind = DoRA if fields("use_dora", bool, False) else LoRA
    settings = {
        name: (
            _keyed(ranks, name, rank, fields, "rank_pattern"),
            float(_keyed(alphas, name, alpha, fields, "alpha_pattern")),
        )
        for name in names
    }
    found = by_path(base.modules, settings, fields.place)
    common = dict(
        dropout=fields("lora_dropout", float, 0.0),
        rank_stabilised=fields("use_rslora", bool, False),
        wide=any(own > largest(base.specs[path]) for path, (own, _) in found.items()),
    )

    def one(alpha: float) -> Any:
        own = {path: rank for path, (rank, other) in found.items() if other == alpha}
        usual = _usual(own.values())
        return kind(rules=_rules(own, usual), rank=usual, alpha=alpha, **common)

    return tuple(one(alpha) for alpha in dict.fromkeys(alpha for _, alpha in found.values()))


def _write_lora(
    transforms: Sequence[Any], names: Sequence[str], nodes: Mapping[str, Any], base: Base
) -> dict[str, Any]:
    for t in transforms:
        if t.init != "kaiming":
            raise UserError(
                f"LoRA(init={t.init!r}) took a part of the base, which PEFT's base still has: merge it instead"
            )
    alphas = {path: t.alpha for t in transforms for path in match(t.rules, base.specs)}
    inner = {path: node.lora if isinstance(node, DoRAWeight) else node for path, node in nodes.items()}
    ranks = _in_all(names, {path: node.a.shape[-1] for path, node in inner.items()}, base, "the rank")
    alphas = _in_all(names, alphas, base, "alpha")
    rank, alpha = _usual(ranks.values()), _usual(alphas.values())
    return {
        "r": rank,
        "lora_alpha": number(alpha),
        "lora_dropout": _same(transforms, "dropout"),
        "use_rslora": _same(transforms, "rank_stabilised"),
        "use_dora": isinstance(transforms[0], DoRA),
        "rank_pattern": _pattern(ranks, rank, base),
        "alpha_pattern": _pattern(alphas, alpha, base),
    }


def _read_adalora(fields: AdapterFields, names: Sequence[str], base: Base) -> tuple[Any, ...]:
    for name, value in (("init_lora_weights", True), ("use_dora", False), ("use_rslora", False), ("alpha_pattern", {})):
        fields.only(name, value)
    rank, steps = fields("init_r", int, 12), fields("total_step", int)
    if steps < 1:
        raise fields.error("total_step", "must be at least 1")
    fields("rank_pattern", dict, None)
    found = by_path(base.modules, dict.fromkeys(names, rank), fields.place)
    return (
        AdaLoRA(
            rules=tuple(found),
            rank=rank,
            target=fields("target_r", float, 8.0),
            begin=fields("tinit", int, 0) / steps,
            end=1 - fields("tfinal", int, 0) / steps,
            every=fields("deltaT", int, 1),
            b1=fields("beta1", float, 0.85),
            b2=fields("beta2", float, 0.85),
            orthogonality=fields("orth_reg_weight", float, 0.5),
            alpha=fields("lora_alpha", float, 8.0) * rank / (rank + MORE),
            wide=any(rank > largest(base.specs[path]) for path in found),
        ),
    )


def _write_adalora(
    transforms: Sequence[Any], names: Sequence[str], nodes: Mapping[str, Any], base: Base
) -> dict[str, Any]:
    ranks = _in_all(names, {path: node.values.shape[-1] for path, node in nodes.items()}, base, "the rank")
    if len(set(ranks.values())) > 1:
        raise UserError(f"AdaLoRA begins with ranks {sorted(set(ranks.values()))}: PEFT has one for all layers")
    rank = next(iter(ranks.values()))
    t = {f.name: _same(transforms, f.name) for f in dataclasses.fields(AdaLoRA) if f.name not in ("rules", "rank")}
    return {
        "init_r": rank,
        "target_r": number(t["target"]),
        "lora_alpha": number(round(t["alpha"] * (rank + MORE) / rank, 9)),
        "tinit": round(t["begin"] * STEPS),
        "tfinal": round((1 - t["end"]) * STEPS),
        "total_step": STEPS,
        "deltaT": t["every"],
        "beta1": t["b1"],
        "beta2": t["b2"],
        "orth_reg_weight": t["orthogonality"],
    }


def _unfold_adalora(tensors: Tensors, fields: AdapterFields, names: Sequence[str], base: Base) -> Tensors:
    """Triplets that were cut away, by `rank_pattern`, as zeros."""
    found = dict(tensors)
    for name, kept in (fields("rank_pattern", dict, None) or {}).items():
        module = name.partition(".lora_E")[0]
        kept = np.asarray(kept, bool).ravel()
        for end, axis in (("lora_A", 0), ("lora_E", 0), ("lora_B", 1)):
            cut = found.get(f"{PREFIX}{module}.{end}")
            if cut is None or cut.ndim != 2 or cut.shape[axis] != kept.sum():
                raise fields.error("rank_pattern", f"does not fit {module}.{end} and its {kept.sum()} triplets")
            whole = np.zeros([len(kept) if i == axis else n for i, n in enumerate(cut.shape)], cut.dtype)
            whole[(slice(None),) * axis + (kept,)] = cut
            found[f"{PREFIX}{module}.{end}"] = whole
    return found


def _fold_adalora(tensors: Tensors, names: Sequence[str], base: Base) -> tuple[Tensors, dict[str, Any]]:
    """Triplets that are all zero cut away."""
    found, pattern = dict(tensors), {}
    for name in names:
        a, e, b = (tensors[f"{PREFIX}{name}.{end}"] for end in ("lora_A", "lora_E", "lora_B"))
        kept = (a != 0).any(1) | (e != 0).any(1) | (b != 0).any(0)
        kept[0] |= not kept.any()
        if not kept.all():
            pattern[f"{name}.lora_E"] = kept.tolist()
            cut = {"lora_A": a[kept], "lora_E": e[kept], "lora_B": np.ascontiguousarray(b[:, kept])}
            found |= {f"{PREFIX}{name}.{end}": x for end, x in cut.items()}
    return found, {"rank_pattern": pattern or None}


def _read_vera(fields: AdapterFields, names: Sequence[str], base: Base) -> tuple[Any, ...]:
    fields.only("save_projection", True)
    rank = fields("r", int, 256)
    found = by_path(base.modules, dict.fromkeys(names, rank), fields.place)
    d, seed = fields("d_initial", float, 0.1), fields("projection_prng_key", int, 0)
    return (VeRA(rules=tuple(found), rank=rank, d=d, seed=seed),)


def _write_vera(
    transforms: Sequence[Any], names: Sequence[str], nodes: Mapping[str, Any], base: Base
) -> dict[str, Any]:
    ranks = {node.inner.shape[-1] for node in nodes.values()}
    if len(ranks) > 1:
        raise UserError(f"VeRA has ranks {sorted(ranks)}: PEFT has one for all layers")
    seed, d = _same(transforms, "seed"), _same(transforms, "d")
    return {"r": ranks.pop(), "d_initial": d, "projection_prng_key": seed, "save_projection": True}


def _unfold_vera(tensors: Tensors, fields: AdapterFields, names: Sequence[str], base: Base) -> Tensors:
    """The common factors cut to each layer's size."""
    found, rank = dict(tensors), fields("r", int, 256)
    sizes = {name: base.sizes(name) for name in names}
    widest = [max(size[i] for size in sizes.values()) for i in range(2)]
    a, b = (found.pop(name, None) for name in FACTORS.values())
    for name, x, shape in zip(FACTORS.values(), (a, b), ((rank, widest[0]), (widest[1], rank)), strict=True):
        if x is None:
            raise UserError(f"{fields.place}: tensor {name} is missing; PEFT draws it again, which is not done here")
        if x.shape != shape:
            raise UserError(f"{fields.place}: {name} has the shape {list(x.shape)}; these layers make it {list(shape)}")
    for name, (inputs, outputs) in sizes.items():
        found |= {f"{PREFIX}{name}.vera_A": a[:, :inputs], f"{PREFIX}{name}.vera_B": b[:outputs]}
    return found


def _fold_vera(tensors: Tensors, names: Sequence[str], base: Base) -> tuple[Tensors, dict[str, Any]]:
    """The widest of the factors, of which all others are the beginnings. Raises UserError where they are not."""
    found = dict(tensors)
    for end, (whole, axis) in {"vera_A": (FACTORS["vera_A"], 1), "vera_B": (FACTORS["vera_B"], 0)}.items():
        own = {name: found.pop(f"{PREFIX}{name}.{end}") for name in names}
        widest = max(own, key=lambda name: own[name].shape[axis])
        for name, x in own.items():
            if not np.array_equal(x, own[widest].take(range(x.shape[axis]), axis)):
                raise UserError(
                    f"{end} of {name} is not the beginning of that of {widest}: PEFT cuts one pair of factors for all layers,"
                    f" where VeRA here draws one for each shape"
                )
        found[whole] = own[widest]
    return found, {}


def _read_ia3(fields: AdapterFields, names: Sequence[str], base: Base) -> tuple[Any, ...]:
    inputs = fields.names("feedforward_modules") or ()

    def side(name: str) -> str:
        return "in" if (re.fullmatch(inputs, name) if isinstance(inputs, str) else name.endswith(inputs)) else "out"

    found = by_path(base.modules, {name: side(name) for name in names}, fields.place)
    _check_unbiased(names, found, base)
    return (IA3(rules=tuple(found.items())),)


def _check_unbiased(names: Sequence[str], sides: Mapping[str, str], base: Base) -> None:
    for name in names:
        module = base.modules[name]
        if module.biased and sides[module.paths[0]] == "out":
            raise UserError(f"{name} has a bias, which PEFT's IA3 scales with the outputs and ours does not")


def _write_ia3(transforms: Sequence[Any], names: Sequence[str], nodes: Mapping[str, Any], base: Base) -> dict[str, Any]:
    sides = {path: node.side for path, node in nodes.items()}
    own = _in_all(names, sides, base, "the side")
    _check_unbiased(names, sides, base)
    inside, outside = (named([name for name in names if own[name] == side], base.modules) for side in ("in", "out"))
    return {"target_modules": [*outside, *inside], "feedforward_modules": inside}


METHODS: dict[str, Method] = {
    "LORA": Method((LoRA, DoRA), _read_lora, _write_lora),
    "ADALORA": Method(
        (AdaLoRA,), _read_adalora, _write_adalora, _unfold_adalora, _fold_adalora, frozenset({"r", "lora_dropout"})
    ),
    "VERA": Method((VeRA,), _read_vera, _write_vera, _unfold_vera, _fold_vera, frozenset({"vera_dropout"})),
    "IA3": Method((IA3,), _read_ia3, _write_ia3),
}
