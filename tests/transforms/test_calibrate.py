"""Evidence against the inputs themselves, and what methods that rest on it gain by it."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.bench.pairs import PAIRS
from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec, abstract, count, init
from jaxeff.core.weight import dense, einsum
from jaxeff.mixers import GQA
from jaxeff.mixers.base import Ctx
from jaxeff.models import LM, Block, Stage
from jaxeff.transforms import Int4, LowRank, chain
from jaxeff.transforms.calibrate import Sums, calibrate, seeing
from jaxeff.transforms.low_rank import by_budget
from jaxeff.transforms.plan import planned, weights
from tests.closeness import assert_close
from tests.compiled import apply_model

KEY = jax.random.key(0)
SPECS = {
    "w": Spec((3, 12, 5, 8), (None,) * 4, n_stacked=1),
    "o": Spec((3, 5, 8, 12), (None,) * 4, n_stacked=1, n_in=2),
    "norm": Spec((12,), (None,), n_in=0),
}
PARAMS = init(SPECS, KEY)
MIX = np.random.default_rng(3).standard_normal((12, 12)) * np.geomspace(1, 0.02, 12)


def batches(n=2):
    r = np.random.default_rng(0)
    return [jnp.asarray(r.standard_normal((4, 6, 12)) @ MIX, jnp.float32) for _ in range(n)]


def forward(params, x):
    """(y, the inputs of w and of o in each layer)."""

    @jax.checkpoint
    def layer(x, w):
        h = jnp.tanh(einsum("btd,dhc->bthc", x, w["w"]))
        return x + einsum("bthc,hcd->btd", h, w["o"]), (x, h)

    return jax.lax.scan(layer, x, {name: params[name] for name in "wo"})


def loss(params, x):
    """Of all tokens but the last two of each text."""
    return jnp.sum(jnp.sin(forward(params, x)[0][:, :-2] * params["norm"][None, None]))


@functools.cache
def inputs():
    """name -> what goes into it, [L, N, I] in float64."""
    seen = [
        jax.tree.map(lambda x: np.asarray(x[:, :, :-2], np.float64), jax.jit(forward)(PARAMS, x)[1]) for x in batches()
    ]
    flat = lambda x: x.reshape(3, 16, -1)
    return {name: np.concatenate([flat(s[i]) for s in seen], axis=1) for i, name in enumerate("wo")}


def test_statistics_are_those_of_the_inputs_under_scan_and_remat():
    found = calibrate(loss, SPECS, PARAMS, batches(), statistics=("covariance", "absolute", "largest"))
    assert set(found) == {"w", "o"}
    for name, x in inputs().items():
        assert np.array_equal(found[name].count, [32.0] * 3), "tokens that no loss depends on are not seen"
        assert_close(found[name].covariance, np.einsum("lni,lnj->lij", x, x) / 32, 4e-6)
        assert_close(found[name].absolute, np.abs(x).mean(axis=1), 4e-6)
        assert_close(found[name].largest, np.abs(x).max(axis=1), 1e-6)


def test_fisher_is_the_mean_squared_gradient_of_texts():
    found = calibrate(loss, SPECS, PARAMS, batches(), ("w",), ("fisher",))["w"].fisher
    gradient = jax.jit(lambda x: jax.grad(loss)(PARAMS, x)["w"])
    gradients = [np.asarray(gradient(x[i : i + 1]), np.float64) for x in map(np.asarray, batches()) for i in range(4)]
    assert_close(found, np.mean(np.square(gradients), axis=0), 1e-5)


def test_a_language_model_is_calibrated_as_it_is():
    model = LM(17, 16, (Stage((Block(GQA(n_heads=4, n_kv_heads=2)), "mamba2"), 2),))
    tokens = np.random.default_rng(0).integers(0, 17, (1, 2, 9)).astype(np.int32)
    r = np.random.default_rng(1)
    params = jax.tree.map(lambda x: (0.3 * r.standard_normal(x.shape)).astype(x.dtype), abstract(model.specs()))
    score = lambda params, tokens: jnp.sum(jnp.sin(model.apply(params, tokens).y))
    rules = (".*/mixer/(q|o|dt|x)", ".*/mlp/down")
    found = calibrate(score, model.specs(), params, tokens, rules)
    assert found["blocks/0/mixer/o"].covariance.shape == (2, 16, 16)
    assert np.array_equal(found["blocks/1/mixer/x"].count, [18.0, 18.0])
    by_inputs = chain(
        LowRank((("blocks/0/mlp/down", 4),), method="whitened"), Int4(("blocks/1/mixer/(x|o)",), method="gptq")
    )
    lifted = by_inputs.plan(model.specs(), found).lift(params, KEY)
    assert np.all(np.isfinite(apply_model(model, lifted, tokens[0], None, Ctx()).y))


def test_the_device_holds_the_statistics_of_one_layer_at_a_time():
    """Of every matrix of a model; the covariances of an MLP's last weights alone are larger than the model's layers."""
    model = PAIRS["gqa"].lm(64, 64, 12)
    specs, tokens = model.specs(), jax.ShapeDtypeStruct((1, 16), jnp.int32)
    members = {path: spec for path, spec in weights(specs).items() if spec.is_matrix and path.startswith("blocks")}
    sums = {path: Sums(("covariance",), spec.stacked, math.prod(spec.inputs)) for path, spec in members.items()}
    see = seeing(lambda params, tokens: jnp.sum(jnp.sin(model.apply(params, tokens).y)), members, sums)
    on_device = see.lower(abstract(specs), tokens).compile().memory_analysis().temp_size_in_bytes
    on_host = sum(total.nbytes for s in sums.values() for total in s.totals.values())
    assert 1.4 < on_host / (4 * count(specs)) < 1.6  # as large as they are
    assert on_device + on_host < 2 * 4 * count(specs)


@pytest.mark.parametrize("form", [jax.vmap, lambda f: lambda x: jnp.stack([f(row) for row in x])])
def test_statistics_of_a_loss_over_texts_one_by_one(form):
    found = calibrate(
        lambda params, x: jnp.sum(form(lambda row: loss(params, row[None]))(x)), SPECS, PARAMS, batches(), ("w",)
    )["w"]
    x = inputs()["w"]
    assert np.array_equal(found.count, [32.0] * 3)
    assert_close(found.covariance, np.einsum("lni,lnj->lij", x, x) / 32, 4e-6)


def test_statistics_of_weights_and_batches_on_several_devices():
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = lambda x, *axes: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*axes)))
    params = PARAMS | {"w": place(PARAMS["w"], None, "model"), "o": place(PARAMS["o"], None, None, "model")}
    found = calibrate(loss, SPECS, params, [place(x, "data") for x in batches()])
    for name, x in inputs().items():
        assert np.array_equal(found[name].count, [32.0] * 3)
        assert_close(found[name].covariance, np.einsum("lni,lnj->lij", x, x) / 32, 4e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(rules=("norm",)), "rules of calibrate match no matrix: 'norm'"),
        (dict(rules=("ww",)), "rule of calibrate 'ww' matches no path; did you mean 'w'"),
        (dict(batches=[]), "calibrate was given no batches"),
        (dict(statistics=("covarianc",)), "no statistic is called 'covarianc'; did you mean 'covariance'"),
        (dict(batches=[jnp.full((1, 3, 12), jnp.nan)]), "the covariance of o is not finite"),
        (dict(loss=lambda params, x: jnp.sum(params["norm"])), "no token reached o in every one of its stack"),
    ],
)
def test_evidence_that_cannot_be(arguments, says):
    given = dict(loss=loss, specs=SPECS, params=PARAMS, batches=batches(1)) | arguments
    with pytest.raises(UserError, match=says):
        calibrate(**given)


@pytest.fixture(scope="module")
def evidence():
    return calibrate(loss, SPECS, PARAMS, batches(), statistics=("covariance", "absolute", "fisher"))


def lost(method, evidence, name="w"):
    """E|x W - x W'|^2 over the calibrated inputs, per layer."""
    w = planned(method, SPECS, evidence).lift(PARAMS, KEY)[name]
    d = np.asarray(dense(w, jnp.float32) - PARAMS[name], np.float64)
    x = inputs()[name]
    return np.mean((x @ d.reshape(3, x.shape[-1], -1)) ** 2, axis=(1, 2))


def test_whitened_truncation_is_the_best_for_these_inputs(evidence):
    by_weight = lost(LowRank((("w", 4),)), evidence)
    whitened = lost(LowRank((("w", 4),), method="whitened"), evidence)
    asvd = lost(LowRank((("w", 4),), method="asvd"), evidence)
    assert np.all(whitened < 0.5 * by_weight) and np.all(whitened <= asvd * 1.0001) and np.all(asvd < by_weight)
    # What is lost is the sum of the squared singular values of X W beyond the rank, and no pair loses less.
    s = np.linalg.svd(inputs()["w"] @ np.asarray(PARAMS["w"], np.float64).reshape(3, 12, 40), compute_uv=False)
    np.testing.assert_allclose(whitened, np.sum(s[:, 4:] ** 2, axis=1) / (32 * 40), rtol=1e-3)


def test_fisher_spares_the_inputs_whose_weights_matter(evidence):
    fisher = np.zeros((3, 12, 5, 8))
    fisher[:, :2] = 1.0
    moved = {"w": dataclasses.replace(evidence["w"], fisher=jnp.asarray(fisher, jnp.float32))}
    w = LowRank((("w", 2),), method="fisher").plan(SPECS, moved).lift(PARAMS, KEY)["w"]
    error = np.asarray(dense(w, jnp.float32) - PARAMS["w"]).reshape(3, 12, 40)
    assert np.abs(error[:, :2]).max() < 1e-3 < np.abs(error[:, 2:]).max()


def test_gptq_and_awq_lose_less_than_the_nearest(evidence):
    for name in "wo":
        nearest = lost(Int4((name,), group=4), evidence, name)
        assert np.all(lost(Int4((name,), group=4, method="gptq"), evidence, name) < 0.7 * nearest)
        assert np.all(lost(Int4((name,), group=4, method="awq"), evidence, name) < nearest)


def test_gptq_against_the_paper_one_weight_at_a_time():
    """Optimal brain surgery in float64: after each input, the inverse of what is left of H, by elimination."""
    r = np.random.default_rng(0)
    w, x = r.standard_normal((8, 3)), r.standard_normal((50, 8)) @ r.standard_normal((8, 8))
    h = x.T @ x / 50
    evidence = calibrate(
        lambda params, x: jnp.sum(jnp.sin(einsum("bi,io->bo", x, params["w"]))),
        {"w": Spec((8, 3), (None, None))},
        {"w": jnp.asarray(w, jnp.float32)},
        [jnp.asarray(x, jnp.float32)],
    )
    assert_close(evidence["w"].covariance, h, 1e-5)
    plan = Int4(("w",), group=4, method="gptq").plan({"w": Spec((8, 3), (None, None))}, evidence)
    node = plan.lift({"w": jnp.asarray(w, jnp.float32)}, KEY)["w"]
    low, step = np.asarray(node.low, np.float64), np.asarray(node.step, np.float64)
    left, expected = w.copy(), np.zeros_like(w)
    damped = h + 0.01 * np.mean(np.diag(h)) * np.eye(8)
    for i in range(8):
        inverse = np.linalg.inv(damped[i:, i:])
        lo, st = low[i // 4, 0], step[i // 4, 0]
        expected[i] = lo + st * np.clip(np.round((left[i] - lo) / st), 0, 15)
        left[i:] -= np.outer(inverse[:, 0] / inverse[0, 0], left[i] - expected[i])
    assert_close(dense(node, jnp.float32), expected, 1e-6)


def test_ranks_by_what_inputs_need(evidence):
    method = by_budget(SPECS, PARAMS, ("w", "o"), 0.5, "whitened", evidence)
    assert method.method == "whitened" and len(method.rules) == 2
    by_weight = by_budget(SPECS, PARAMS, ("w", "o"), 0.5)
    total = lambda rules: sum(lost(LowRank(rules, method="whitened"), evidence, n).sum() for n in "wo")
    assert total(method.rules) <= total(by_weight.rules)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            LowRank((("w", 2),), method="whitened"),
            r"LowRank\(method='whitened'\) needs the covariance of what goes into w",
        ),
        (
            Int4(("w",), method="awq"),
            r"needs the covariance and the absolute of .* statistics=\('covariance', 'absolute'\)",
        ),
    ],
)
def test_without_evidence_there_is_a_plan_but_no_values(method, says):
    plan = method.plan(SPECS)
    assert plan.specs["w"] is not SPECS["w"]
    with pytest.raises(UserError, match=says):
        plan.lift(PARAMS, KEY)


def test_rounding_by_inputs_needs_the_weight_as_it_is():
    with pytest.raises(UserError, match="'w' by what goes into it, which needs the weight as it is; it is of low rank"):
        chain(LowRank((("w", 2),)), Int4(("w",), method="gptq")).plan(SPECS)
    with pytest.raises(UserError, match=r"no Int4.method is called 'gptk'; did you mean 'gptq'"):
        Int4(method="gptk")
    with pytest.raises(UserError, match=r"no LowRank.method is called 'white'; did you mean 'whitened'"):
        LowRank(method="white")
