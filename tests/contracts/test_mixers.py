"""What every mixer of the registries must do, and the one that docs/architecture.md adds as its example. A new registry line
gets all of these tests, with `Mixer(d_model=32)` unless SMALL names a smaller or sharper configuration; further configurations
of one name are written `name/variant`.

B batch, T time, D model. T is odd and crosses the recurrences' chunk of 64 tokens, and every window and cache used here.
"""

import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import jaxeff
from jaxeff.core.sharding import MESH_AXES, RULES, pspec
from jaxeff.core.spec import Spec
from jaxeff.core.target import lowering_for
from jaxeff.mixers.base import Ctx
from jaxeff.mixers.deltanet import DeltaNet
from jaxeff.mixers.gated_deltanet import GatedDeltaNet
from jaxeff.mixers.gated_deltaproduct import GatedDeltaProduct
from jaxeff.mixers.gla import GLA
from jaxeff.mixers.gqa import GQA, MHA, MQA, SlidingWindow
from jaxeff.mixers.kda import KDA
from jaxeff.mixers.linear_attention import LinearAttention
from jaxeff.mixers.mamba import Mamba
from jaxeff.mixers.mamba2 import Mamba2
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.moe import MoE
from jaxeff.mixers.norm import LayerNorm, RMSNorm
from jaxeff.mixers.registry import CHANNEL_MIXERS, MIXERS
from jaxeff.mixers.retnet import RetNet
from jaxeff.mixers.rglru import RGLRU
from jaxeff.mixers.rwkv4 import RWKV4, RWKV4Channel
from jaxeff.mixers.rwkv6 import RWKV6, RWKV6Channel
from jaxeff.mixers.rwkv7 import RWKV7, RWKV7Channel
from jaxeff.mixers.short_conv import ShortConv
from jaxeff.models import LM, Block, Stage
from jaxeff.ops.attention_kernels import LANES
from tests.closeness import assert_close
from tests.documented import ROOT, defined

QKVO = ("q", "k", "v", "o")
SMALL = {
    "gqa": GQA(16, n_heads=4, n_kv_heads=2),
    "gqa/options": GQA(16, n_heads=2, n_kv_heads=1, head_dim=6, qk_norm=RMSNorm(), biases=QKVO, softcap=2.0, rope=None),
    "gqa/full-norm": GQA(
        16, n_heads=2, n_kv_heads=1, qk_norm=LayerNorm(), qk_norm_over="all", biases=("q",), scale=0.3
    ),
    "mha": MHA(16, n_heads=2),
    "mqa": MQA(16, n_heads=2),
    "window": SlidingWindow(16, window=5, n_heads=2),
    "linear": LinearAttention(16, n_heads=2),
    "linear/taylor2": LinearAttention(16, n_heads=2, feature_map="taylor2", key_dim=3, biases=QKVO),
    "linear/rms": LinearAttention(16, n_heads=2, feature_map="softmax", normalise=False),
    "mamba": Mamba(16, d_state=5, dt_rank=3),
    "mamba/falcon": Mamba(12, d_state=3, dt_rank=4, conv=ShortConv(3, bias=False), bcdt_eps=1e-6),
    "mamba/biases": Mamba(8, d_state=3, biases=("z", "x", "o")),
    "mamba2": Mamba2(16, d_state=6, head_dim=8),
    "mamba2/options": Mamba2(
        12,
        d_state=5,
        head_dim=6,
        n_groups=2,
        conv=ShortConv(3, bias=False),
        dt_limit=(1e-3, 0.2),
        norm_before_gate=True,
    ),
    "deltanet": DeltaNet(16, n_heads=2, head_dim=6, value_dim=5, negative=True),
    "gated_deltanet": GatedDeltaNet(16, n_heads=2, n_key_heads=1, head_dim=6),
    "gated_deltaproduct": GatedDeltaProduct(12, n_heads=2, n_key_heads=1, head_dim=6, value_dim=5),
    "gla": GLA(16, n_heads=2, key_dim=6, value_dim=5, rank=3),
    "kda": KDA(16, n_heads=2, n_key_heads=1, head_dim=6, value_dim=5),
    "rwkv7": RWKV7(12, head_dim=6, ranks=(3, 4, 5, 6)),
    "rwkv7_channel": RWKV7Channel(12, d_hidden=20),
    "mlp": MLP(16, d_hidden=24),
    "mlp/plain": MLP(16, d_hidden=24, gated=False, activation="gelu", biases=("up", "down")),
    "moe": MoE(16, d_hidden=12, n_experts=4),
    "moe/options": MoE(12, 10, 3, 1, "gelu", False, n_shared=1, score="sigmoid", normalise=False),
    # Room for all that may come: which tokens have room depends on the others.
    "moe/capacity": MoE(12, d_hidden=10, n_experts=4, capacity=2.0),
    "retnet": RetNet(16, n_heads=2, key_dim=6, value_dim=5),
    "retnet/options": RetNet(12, n_heads=3, rope=None, norm=LayerNorm()),
    "rglru": RGLRU(16, d_rnn=24, n_heads=2),
    "rglru/options": RGLRU(12, n_heads=3, conv=ShortConv(3, bias=False, activation=None), biases=("o",)),
    "rwkv4": RWKV4(16, d_attention=24),
    "rwkv4_channel": RWKV4Channel(16, d_hidden=24),
    "rwkv6": RWKV6(16, n_heads=2, mix_rank=5, decay_rank=6),
    "rwkv6_channel": RWKV6Channel(16, d_hidden=24),
}
REGISTERED = MIXERS | CHANNEL_MIXERS | {"decay": defined(ROOT / "docs/architecture.md", "Decay")}
CASES = {name: SMALL.get(name) or make(d_model=32) for name, make in REGISTERED.items()}
CASES |= {name: mixer for name, mixer in SMALL.items() if "/" in name}

# Decode states that hold every token; all others must have a size that does not depend on the length of the text.
GROWING = {"gqa", "gqa/options", "gqa/full-norm", "mha", "mqa"}

# How many tokens a channel mixer looks back; all others none.
LOOK_BACK = {"rwkv4_channel": 1, "rwkv6_channel": 1, "rwkv7_channel": 1}

B, HALF = 2, 35
T = 2 * HALF
ONES = np.ones((B, T), np.int32)
# The longest sums have some hundred terms of size one, and a softmax or normaliser after them: 1e-6 is usual.
F32 = 1e-5
# bfloat16 keeps 8 bits, 2^-9 = 2e-3 a rounding; four roundings in a row, and sums of squares of them in the features.
BF16 = 2e-2

# All tests of a mixer follow each other: what they share is compiled once.
every_mixer = pytest.mark.parametrize("name", CASES, scope="module")
every_registered = pytest.mark.parametrize("name", REGISTERED, scope="module")


@functools.cache
def initial(layer):
    """Without a program of its own: `init` compiles each declaration once, however many mixers share it."""
    return jaxeff.init(layer.specs(), jax.random.key(0))


@functools.cache
def values(name):
    """Parameters, with something added to each so that no bias or scale drops out of a comparison.

    Outside the functions under test everything is NumPy: an eager slice of a JAX array is one more compilation.
    """
    return noisy(initial(CASES[name]))


def noisy(params):
    r = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.asarray(x) + (0.1 * r.standard_normal(x.shape)).astype(x.dtype), params)


@functools.cache
def inputs(name, seed=2, batch=B):
    return np.random.default_rng(seed).standard_normal((batch, T, CASES[name].d_model)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def apply(mixer, params, x_BTD, segment_ids_BT=None, state=None):
    return mixer.apply(params, x_BTD, state, ctx=Ctx(segment_ids=segment_ids_BT))


def whole(name, segment_ids_BT=ONES, x_BTD=None):
    """y_BTD of the training form."""
    y_BTD, state, *_ = apply(CASES[name], values(name), inputs(name) if x_BTD is None else x_BTD, segment_ids_BT)
    assert state is None
    return np.asarray(y_BTD)


@functools.cache
def empty(name):
    return jax.tree.map(np.asarray, CASES[name].init_state(B, T, jnp.float32))


def half(name, x_BTD, state, segment_ids_BT=ONES[:, :HALF]):
    y_BTD, state, *_ = apply(CASES[name], values(name), x_BTD, segment_ids_BT, state)
    return np.asarray(y_BTD), state


def steps(name, x_BTD, state):
    """Token after token, without segment ids: the segment goes on."""
    outputs = []
    for t in range(x_BTD.shape[1]):
        y_B1D, state, *_ = apply(CASES[name], values(name), x_BTD[:, t : t + 1], None, state)
        outputs.append(np.asarray(y_B1D))
    return np.concatenate(outputs, axis=1), state


@functools.partial(jax.jit, static_argnums=0)
def weighted_gradients(mixer, params, x_BTD, segment_ids_BT, weight_T):
    """y, and the gradients of sum(weight sin(y)) for parameters and input: one program for all tests."""
    run = lambda params, x_BTD: mixer.apply(params, x_BTD, ctx=Ctx(segment_ids=segment_ids_BT)).y
    y_BTD, pullback = jax.vjp(run, params, x_BTD)
    return y_BTD, pullback(weight_T[None, :, None] * jnp.cos(y_BTD))


def output_and_gradients(mixer, params, x_BTD, segment_ids_BT):
    """y, and the gradients of sum(sin(y)) for parameters and input."""
    return weighted_gradients(mixer, params, x_BTD, segment_ids_BT, np.ones(T, np.float32))


@pytest.mark.either
@every_mixer
def test_shapes_and_finite_gradients(name):
    x_BTD = inputs(name)
    segment_ids = ONES.copy()
    segment_ids[0, :3], segment_ids[1, 40:], segment_ids[1, -5:] = 0, 2, 0
    y_BTD, gradients = output_and_gradients(CASES[name], values(name), x_BTD, segment_ids)
    chex.assert_shape(y_BTD, chex.Dimensions(B=B, T=T, D=CASES[name].d_model)["BTD"])
    chex.assert_trees_all_equal_shapes_and_dtypes(y_BTD, x_BTD)
    chex.assert_tree_all_finite(gradients)
    for path, gradient in jaxeff.core.tree.paths(gradients).items():
        assert np.any(np.asarray(gradient) != 0), f"{path} takes no part"


@every_registered
def test_works_alone_and_jitted_is_plain(name):
    """Two tokens without jit, segments or a context are the first two of a text that a program reads."""
    plain, state, *_ = CASES[name].apply(values(name), inputs(name)[:, :2])
    assert state is None
    assert_close(whole(name)[:, :2], plain, F32)


@pytest.mark.either
@every_mixer
def test_gradients_never_come_from_the_future_or_another_segment(name):
    times = [0, 1, 7, 31, 39, 40, 41, 63, 64, T - 1]
    segment_ids = ONES.copy()
    segment_ids[1, 40:] = 2
    run = functools.partial(weighted_gradients, CASES[name], values(name), inputs(name), segment_ids)
    for t in times:
        gradient = np.asarray(run((np.arange(T) == t).astype(np.float32))[1][1])
        assert np.all(gradient[:, t + 1 :] == 0), f"output {t} depends on its future"
        assert np.all(np.any(gradient[:, t] != 0, axis=-1)), f"output {t} does not depend on its own input"
        if t >= 40:
            assert np.all(gradient[1, :40] == 0), f"output {t} depends on the segment before"
        if name.split("/")[0] in CHANNEL_MIXERS:
            seen = max(t - LOOK_BACK.get(name, 0), 0)
            assert np.all(gradient[:, :seen] == 0), f"a channel mixer's output {t} depends on tokens before {seen}"


@pytest.mark.either
@every_mixer
def test_the_whole_is_its_halves_and_its_tokens(name):
    x_BTD = inputs(name)
    expected = np.asarray(
        output_and_gradients(CASES[name], values(name), x_BTD, ONES)[0]
    )  # a program that is there anyway
    first, state = half(name, x_BTD[:, :HALF], empty(name))
    second, _ = half(name, x_BTD[:, HALF:], state)
    assert_close(np.concatenate([first, second], axis=1), expected, F32, "halves")
    by_token, state_by_token = steps(name, x_BTD[:, :HALF], empty(name))
    assert_close(by_token, expected[:, :HALF], F32, "tokens")
    assert_close(half(name, x_BTD[:, HALF:], state_by_token)[0], second, F32, "prefill after decoding")
    assert_close(steps(name, x_BTD[:, HALF : HALF + 4], state)[0], second[:, :4], F32, "decoding after prefill")


@every_mixer
def test_padding_leaves_the_state_untouched(name):
    _, state = half(name, inputs(name)[:, :HALF], empty(name))
    _, after = half(name, inputs(name, seed=4)[:, :HALF], state, np.zeros((B, HALF), np.int32))
    chex.assert_trees_all_equal(after, state, strict=True)


@every_mixer
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_ragged_batch_is_each_prompt_alone(name, side):
    prompts, lengths = inputs(name), (HALF - 1, 9)
    place = [slice(HALF - n, HALF) if side == "left" else slice(0, n) for n in lengths]
    x_BTD, segment_ids = inputs(name, seed=4)[:, :HALF].copy(), np.zeros((B, HALF), np.int32)
    for b, n in enumerate(lengths):
        x_BTD[b, place[b]], segment_ids[b, place[b]] = prompts[b, :n], 1
    y_BTD, state = half(name, x_BTD, empty(name), segment_ids)
    next_BTD, _ = steps(name, inputs(name, seed=5)[:, :3], state)
    for b, n in enumerate(lengths):
        alone, state_alone = steps(name, prompts[:, :n], empty(name))
        assert_close(y_BTD[b, place[b]], alone[b], F32, f"prompt of {n}")
        assert_close(
            next_BTD[b], steps(name, inputs(name, seed=5)[:, :3], state_alone)[0][b], F32, f"after a prompt of {n}"
        )


@every_mixer
def test_packed_segments_do_not_see_each_other_at_any_boundary(name):
    times = np.arange(T)
    x_BTD, other = inputs(name), inputs(name, seed=6)
    for boundary in range(1, T):
        after = times >= boundary
        segment_ids = np.tile(1 + after.astype(np.int32), (B, 1))
        y_BTD = whole(name, segment_ids, x_BTD)
        changed = whole(name, segment_ids, np.where(after[:, None], x_BTD, other))
        assert np.array_equal(y_BTD[:, after], changed[:, after]), boundary

        # The second segment at the start of its row, the rest of which is padding.
        alone = whole(name, np.tile((times < T - boundary).astype(np.int32), (B, 1)), np.roll(x_BTD, -boundary, axis=1))
        assert_close(y_BTD[:, after], alone[:, : T - boundary], F32, f"boundary {boundary}")


@every_mixer
def test_a_new_segment_does_not_see_the_state(name):
    x_BTD = inputs(name)
    fresh, _ = half(name, x_BTD[:, HALF:], empty(name))
    _, state = half(name, x_BTD[:, :HALF], empty(name))
    after, _ = half(name, x_BTD[:, HALF:], state, 2 * ONES[:, :HALF])
    assert_close(after, fresh, F32)


@every_mixer
def test_bfloat16_is_near_float32(name):
    x_BTD = inputs(name).astype(jnp.bfloat16)
    y_BTD = apply(CASES[name], values(name), x_BTD, ONES).y
    assert y_BTD.dtype == jnp.bfloat16
    assert_close(y_BTD, whole(name, x_BTD=x_BTD.astype(np.float32)), BF16)


@every_mixer
def test_size_of_the_state(name):
    def size(max_len):
        state = jax.eval_shape(lambda: CASES[name].init_state(B, max_len, jnp.bfloat16))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    growth = size(10_000) - size(1_000)
    assert growth > 0 if name in GROWING else growth == 0


@every_mixer
def test_a_state_of_another_mixer_width_or_batch_is_refused_and_both_are_named(name):
    mixer, x_BTD = CASES[name], inputs(name)
    other = {"memory": jnp.zeros((B, 3))}
    with pytest.raises(
        ValueError, match=rf"{type(mixer).__name__} needs a state .* found the state dict\(memory \[2, 3\]\)"
    ):
        mixer.apply(values(name), x_BTD, other)
    state = mixer.init_state(B + 1, T, jnp.float32)
    if jax.tree.leaves(state):
        with pytest.raises(ValueError, match=rf"for a batch of {B}, found .*\[{B + 1}"):
            mixer.apply(values(name), x_BTD, state)
        wider = REGISTERED[name.split("/")[0]](d_model=64).init_state(B, T, jnp.float32)
        with pytest.raises(ValueError, match=f"{type(mixer).__name__} needs a state"):
            mixer.apply(values(name), x_BTD, wider)


@pytest.mark.parametrize("name", sorted(GROWING))
def test_no_more_tokens_than_a_growing_state_was_made_for(name):
    x_BTD, state = inputs(name)[:, :1], CASES[name].init_state(B, 3, jnp.float32)
    for _ in range(3):
        y_BTD, state, *_ = apply(CASES[name], values(name), x_BTD, None, state)
        assert np.all(np.isfinite(y_BTD))
    with pytest.raises(ValueError, match="4 tokens do not fit a cache of max_len=3"):
        CASES[name].apply(values(name), x_BTD, state)
    only_first = np.array([[1], [0]], np.int32)
    y_BTD = np.asarray(apply(CASES[name], values(name), x_BTD, only_first, state).y)
    assert np.all(np.isnan(y_BTD[0])) and np.all(np.isfinite(y_BTD[1])), "under jit the row's outputs tell"


@every_mixer
def test_axes_are_known_and_do_not_collide(name):
    mesh = AbstractMesh((2, 2, 2, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    for path, spec in jaxeff.core.tree.paths(CASES[name].specs()).items():
        assert isinstance(spec, Spec), path
        assert set(spec.axes) <= set(dict(RULES)) | {None}, path
        pspec(spec.axes, spec.shape, mesh, n_stacked=spec.n_stacked)


@every_mixer
def test_lowers_for_a_mesh_of_32_devices(name):
    """What a TPU would run: kernels and products of its own, at a length that kernels take."""
    mesh = AbstractMesh((1, 16, 2, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    specs = CASES[name].specs()
    params = jax.tree.map(shape, jaxeff.abstract(specs), jaxeff.shardings(specs, mesh))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    x_BTD = jax.ShapeDtypeStruct((16, 2 * LANES, CASES[name].d_model), jnp.float32, sharding=rows)
    ids_BT = jax.ShapeDtypeStruct((16, 2 * LANES), jnp.int32, sharding=rows)

    def loss(params, x_BTD, ids_BT):
        return jnp.sum(CASES[name].apply(params, x_BTD, ctx=Ctx(segment_ids=ids_BT, mesh=mesh)).y)

    with lowering_for("tpu"):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(params, x_BTD, ids_BT)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "mhlo.num_partitions = 32" in text
    assert "tpu_custom_call" not in text or "sdy.manual_computation" in text, (
        "a kernel that the partitioner cannot split"
    )


@every_registered
def test_sharded_is_unsharded(name):
    mesh = jaxeff.make_mesh(fsdp=2, tensor=2)
    params = jax.device_put(values(name), jaxeff.shardings(CASES[name].specs(), mesh))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    sharded = output_and_gradients(CASES[name], params, *jax.device_put((inputs(name), ONES), rows))
    assert_close(sharded, output_and_gradients(CASES[name], values(name), inputs(name), ONES), F32)


class Fields(dict):
    """Names in a formula are attributes of the mixer."""

    def __init__(self, mixer):
        self.mixer = mixer

    def __missing__(self, name):
        return getattr(self.mixer, name)


@every_mixer
def test_parameter_count_is_the_formula_of_the_docstring(name):
    mixer = CASES[name]
    found = re.search(r"^Parameters: (.+?)(?:\n\n|\Z)", inspect.getdoc(type(mixer)), re.DOTALL | re.MULTILINE)
    assert found, f"the docstring of {type(mixer).__name__} has no line 'Parameters: <expression in its fields>'"
    formula = " ".join(found[1].split())
    assert eval(formula, {"__builtins__": {"min": min, "max": max}}, Fields(mixer)) == jaxeff.count(mixer.specs()), (
        formula
    )


def model(name, **options):
    mixer = CASES[name]
    block = Block(GQA(n_heads=2), mixer) if name in CHANNEL_MIXERS else Block(mixer)
    return LM(12, mixer.d_model, (Stage((block,), 2),), **options)


def second_half(lm, params, tokens_BT):
    """The loss on the second half of a text."""
    log_p = jax.nn.log_softmax(lm.apply(params, tokens_BT[:, :-1]).y)
    nll = -jnp.take_along_axis(log_p, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(nll[:, nll.shape[1] // 2 :])


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(lm, params, tokens_BT):
    return jax.value_and_grad(functools.partial(second_half, lm))(params, tokens_BT)


@functools.partial(jax.jit, static_argnums=(0, 3))
def fit(lm, params, tokens_BT, n_steps):
    """(losses before each of `n_steps` steps of Adam, gradients before the first). Adam on one vector compiles once, not for
    every parameter."""
    optimizer = optax.adam(optax.linear_schedule(1e-2, 0.0, n_steps))
    vector, tree = ravel_pytree(params)
    loss = lambda vector: second_half(lm, tree(vector), tokens_BT)

    def step(carry, _):
        vector, state, first = carry
        value, gradient = jax.value_and_grad(loss)(vector)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            updates, after = optimizer.update(gradient, state)
        first = jnp.where(state[0].count == 0, gradient, first)
        return (optax.apply_updates(vector, updates), after, first), value

    start = vector, optimizer.init(vector), jnp.zeros_like(vector)
    (*_, first), losses = jax.lax.scan(step, start, None, length=n_steps)
    return losses, tree(first)


@every_registered
def test_scanned_and_recomputed_layers_are_plain_layers_and_overfit_a_copy_task_of_32_tokens(name):
    first = np.random.default_rng(7).integers(0, 12, (1, 16), np.int32)
    tokens_BT = np.concatenate([first, first], axis=1)
    params = initial(model(name))
    losses, gradients = fit(model(name, scan=True, remat="full"), params, tokens_BT, 300)
    losses = np.asarray(losses)
    assert_close((losses[0], gradients), loss_and_gradients(model(name, scan=False), params, tokens_BT), F32)
    assert losses[0] > 2.0 and losses[-1] < 0.1, losses[::30]
