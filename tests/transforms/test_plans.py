"""The laws that every transform keeps, and what rules may not do."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec
from jaxeff.core.tree import paths
from jaxeff.mixers import GQA
from jaxeff.models import LM, Block, Stage
from jaxeff.transforms import (
    IA3,
    NF4,
    TRANSFORMS,
    AdaLoRA,
    Adapter,
    DoRA,
    Int4,
    Int8,
    LoRA,
    LowRank,
    Mask,
    QLoRA,
    VeRA,
    chain,
    specs_of,
)
from tests.closeness import assert_close


def noise(tree):
    r = np.random.default_rng(2)
    return jax.tree.map(lambda w: 0.3 * r.standard_normal(w.shape, np.float32), tree)


KEY = jax.random.key(0)
MODEL = LM(17, 16, (Stage((Block(GQA(n_heads=4, n_kv_heads=2)), "linear"), 2), Stage(("mha",), 1)), tied=False)
VALUES = noise(jaxeff.abstract(MODEL.specs()))
TOKENS = np.random.default_rng(0).integers(0, 17, (2, 9)).astype(np.int32)
EVERYWHERE = ((".*/mixer/(q|k|v)", 3), (".*/mixer/o", 4), ("blocks/0/mlp/(up|down)", 2), ("embed", 2), ("head", 2))
RULES = (".*/mixer/.*", ".*/mlp/(up|down)", "embed", "head")
FEW = (".*/mixer/(q|o)", "blocks/0/mlp/down", "embed")
METHODS = {
    "lora": LoRA(EVERYWHERE),
    "pissa": LoRA(EVERYWHERE, init="pissa"),
    "dora": DoRA(tuple((rule, 2) for rule in FEW)),
    "vera": VeRA(EVERYWHERE),
    "adalora": AdaLoRA(EVERYWHERE, target=1.0),
    "ia3": IA3((("blocks/.*/mixer/(k|v)", "out"), ("blocks/0/mlp/down", "in"), ("embed", "in"), ("head", "out"))),
    "low_rank": LowRank(EVERYWHERE),
    "mask": Mask(((".*/mixer/.*", "2:4"), (".*/mlp/(up|down)", 0.3), ("embed|head", 0.5))),
    "int8": Int8(RULES),
    "int4": Int4(FEW),
    "nf4": NF4(FEW),
    "both": chain(Int8(RULES), LoRA(EVERYWHERE)),
    "none": chain(),
}
ADAPTERS = ("lora", "dora", "vera", "adalora", "ia3")
every_method = pytest.mark.parametrize("name", METHODS)


@functools.cache
def plan(name):
    return METHODS[name].plan(MODEL.specs())


@functools.cache
def lifted(name):
    return jax.jit(plan(name).lift)(VALUES, KEY)


@functools.cache
def merged(name, fresh):
    """The weights that adapters of a new plan, or those with noise in them, come to."""
    return jax.jit(plan(name).merge)(lifted(name) if fresh else noisy(lifted(name)))


def noisy(tree):
    """Something added to every number that is not a code, so that no part drops out of a comparison."""
    r = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: x + (0.05 * r.standard_normal(x.shape)).astype(x.dtype) if x.dtype == jnp.float32 else x, tree
    )


@jax.jit
def logits(params):
    return MODEL.apply(params, TOKENS).y


@every_method
def test_values_have_the_structure_of_the_specs(name):
    shape = lambda x: (x.shape, x.dtype)
    assert jax.tree.map(shape, lifted(name)) == jax.tree.map(shape, jaxeff.abstract(plan(name).specs))
    drawn = jax.eval_shape(functools.partial(jaxeff.init, plan(name).specs), KEY)
    assert jax.tree.map(shape, drawn) == jax.tree.map(shape, lifted(name))


@every_method
def test_merging_gives_plain_arrays_that_compute_the_same(name):
    assert jax.tree.structure(merged(name, fresh=False)) == jax.tree.structure(VALUES)
    assert_close(logits(merged(name, fresh=False)), logits(noisy(lifted(name))), 1e-5)


@pytest.mark.parametrize("name", ["both", "dora", "low_rank", "mask", "nf4"])
def test_a_mesh_knows_every_leaf(name):
    mesh = jaxeff.make_mesh(fsdp=2, tensor=2)
    placed = jax.device_put(noisy(lifted(name)), jaxeff.shardings(plan(name).specs, mesh))
    assert_close(jax.device_get(logits(placed)), jax.device_get(logits(noisy(lifted(name)))), 1e-5)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_change_nothing_at_the_start(name):
    assert np.array_equal(logits(lifted(name)), logits(VALUES))


@pytest.mark.parametrize("name", ADAPTERS)
def test_merging_a_fresh_adapter_gives_the_weights_back(name):
    if name == "dora":  # divided by its norm and multiplied by it again
        assert_close(merged(name, fresh=True), VALUES, 1e-7)
    else:
        assert jax.tree.all(jax.tree.map(np.array_equal, merged(name, fresh=True), VALUES))


@pytest.mark.parametrize("name", ["pissa"])
def test_what_starts_from_the_base_takes_it_apart(name):
    assert_close(merged(name, fresh=True), VALUES, 1e-6)
    assert not np.array_equal(lifted(name)["embed"].base, VALUES["embed"])


def test_an_adapter_on_a_quantized_base_changes_nothing_at_the_start():
    assert_close(logits(lifted("both")), logits(lifted("int8")), 1e-6)


def test_base_values_are_those_of_the_plain_model():
    plain, with_adapters = paths(VALUES), paths(lifted("lora"))
    for path, value in plain.items():
        assert np.array_equal(value, with_adapters[f"{path}/base" if f"{path}/base" in with_adapters else path]), path


def test_a_chain_uses_one_name_for_a_weight_whatever_it_has_become():
    found = paths(plan("both").specs)
    assert "blocks/0/mixer/q/base/codes" in found and "blocks/0/mixer/q/a" in found
    assert found["blocks/0/mixer/q/a"].shape == (2, 16, 3) and found["blocks/0/mixer/q/b"].shape == (2, 3, 4, 4)
    assert found["blocks/0/mixer/o/a"].shape == (2, 4, 4, 4) and found["blocks/0/mixer/o/a"].n_in == 2
    assert found["blocks/0/mixer/q/a"].n_stacked == found["blocks/0/mixer/q/base/scale"].n_stacked == 1


def test_what_trains():
    trained = [path for path in paths(plan("both").specs) if plan("both").trains(path)]
    assert trained and all(path.endswith(("/a", "/b")) for path in trained)
    alone = [path for path in paths(plan("int8").specs) if plan("int8").trains(path)]
    assert "norm/scale" in alone and not any(path.endswith(("codes", "/scale")) and "mixer/" in path for path in alone)


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (
            Int8(("blocks/0/mixer/qq",)),
            r"rule of Int8 'blocks/0/mixer/qq' matches no path; did you mean 'blocks/0/mixer/q'",
        ),
        (LoRA(((".*/q", 2), ("blocks/0/mixer/q", 4))), "matches only what rules before it took"),
        (LoRA((("norm/scale", 2),)), r"LoRA matches 'norm/scale', which is no matrix \(shape \(16,\), n_in=0\)"),
        (chain(LoRA(), Int8()), r"has an adapter already; the other order works: chain\(Int8\(...\), LoRA\(...\)\)"),
        (chain(LoRA(), LoRA()), r"which has an adapter already \(LoRA\)"),
        (chain(Int8(), Int8()), r"which is in few bits already \(Int8\)"),
        (Mask((("blocks/0/mixer/q", "3:5"),)), "has 16 inputs, which 5 of '3:5' does not divide; 4 does"),
        (
            chain(Int8(), LoRA(init="pissa")),
            r"takes a part of 'blocks/0/mixer/q', which is in few bits: only 'kaiming'",
        ),
        (LoRA((("blocks/0/mixer/k", 99),), strict=True), "has rank 8 at most; 99 was asked for"),
        (Int8(()), "Int8 has no rules"),
        (Int8(("(",)), "not a regular expression"),
    ],
)
def test_rules_and_orders_that_make_no_sense(transform, says):
    with pytest.raises(UserError, match=says):
        transform.plan(MODEL.specs())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LoRA((("q", 0),)), "rank of at least 1"),
        (lambda: LoRA((7,)), r"LoRA.rules are regexes or \(regex, rank\)"),
        (lambda: LoRA(rank=0), "LoRA.rank must be at least 1"),
        (lambda: LoRA(alpha=0.0), "LoRA.alpha must be above 0"),
        (lambda: LoRA(dropout=1.0), "LoRA.dropout must lie in"),
        (lambda: LoRA(init="pisa"), "no LoRA.init is called 'pisa'; did you mean 'pissa'"),
        (lambda: LoRA(lr_ratio=0.0), "LoRA.lr_ratio must be above 0"),
        (lambda: DoRA(init="pissa"), "DoRA.init must be 'kaiming'"),
        (lambda: VeRA((("q", -1),)), "VeRA.rules are"),
        (lambda: AdaLoRA(target=13.0), r"AdaLoRA.target must lie in \(0, 12\]"),
        (lambda: AdaLoRA(begin=0.5, end=0.4), "0 <= begin < end <= 1"),
        (lambda: AdaLoRA(every=0), "AdaLoRA.every must be at least 1"),
        (lambda: LowRank((("q", 0),)), "LowRank.rules are"),
        (lambda: Mask((("q", 1.0),)), r"Mask.rules are \(regex, share of zeros in \[0, 1\)\)"),
        (lambda: Mask((("q", "4:4"),)), "0 < N < M"),
        (lambda: IA3((("q", "both"),)), "IA3.rules are"),
        (lambda: NF4(block=63), "NF4.block must be even"),
        (lambda: Int4(group=0), "Int4.group must be even"),
        (lambda: Adapter((("q", 0),)), "Adapter.rules are"),
        (lambda: Adapter(form="other"), "Adapter.form must be"),
        (lambda: Adapter(activation="gelo"), "did you mean 'gelu'"),
    ],
)
def test_impossible_settings(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_rank_is_what_the_weight_allows(caplog):
    found = paths(LoRA((("blocks/0/mixer/k", 99),)).plan(MODEL.specs()).specs)
    assert found["blocks/0/mixer/k/a"].shape == (2, 16, 8)
    assert "blocks/0/mixer/k has rank 8 at most; 99 was asked for" in caplog.text


@pytest.mark.parametrize("method", [LoRA, DoRA, AdaLoRA])
def test_a_rank_is_kept_where_it_may_be_wide(method):
    found = paths(method((("blocks/0/mixer/k", 99),), wide=True).plan(MODEL.specs()).specs)
    assert {x.shape[-1] for path, x in found.items() if re.fullmatch("blocks/0/mixer/k/(lora/)?[ap]", path)} == {99}


def test_transforms_are_values():
    for make in TRANSFORMS.values():
        assert make() == make() and hash(make()) == hash(make())
    assert dataclasses.replace(LoRA(), alpha=3.0) != LoRA()


def test_somebody_elses_tree():
    theirs = {"attn": {"kernel": jnp.ones((3, 8, 2, 4)), "bias": jnp.ones((3, 8))}, "out": jnp.ones((2, 4, 8))}
    specs = specs_of(theirs, n_in=(("out", 2), (".*", 1)), n_stacked=(("attn/.*", 1),))
    assert specs["attn"]["kernel"] == Spec((3, 8, 2, 4), (None,) * 4, dtype=jnp.dtype("float32"), n_in=1, n_stacked=1)
    assert specs["attn"]["bias"].n_in == 0 and specs["out"].n_in == 2
    found = chain(Int8(("attn/kernel",)), LoRA((("attn/kernel|out", 2),))).plan(specs)
    params = jax.jit(found.lift)(theirs, KEY)
    assert params["out"].a.shape == (2, 4, 2) and params["attn"]["kernel"].b.shape == (3, 2, 2, 4)
    assert_close(jax.jit(found.merge)(params), theirs, 1e-6)


def test_qlora_is_a_chain_by_one_name():
    method = QLoRA((("blocks/0/mixer/(q|v)", 3), "head"), rank=2, alpha=3.0)
    same = chain(NF4(("blocks/0/mixer/(q|v)", "head")), LoRA((("blocks/0/mixer/(q|v)", 3), "head"), 2, 3.0))
    assert method.parts == same
    found = paths(method.plan(MODEL.specs()).specs)
    assert found["head/a"].shape == (16, 2) and "blocks/0/mixer/q/base/codes" in found
    assert QLoRA(("head",), quantized=("embed", "head")).parts.transforms[0] == NF4(("embed", "head"))
    with pytest.raises(ValueError, match="NF4.block must be even"):
        QLoRA(block=3)
