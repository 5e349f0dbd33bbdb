"""Communication and the clock: who waits for what, over which axes, in made-up modules on made-up chips."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.plan.chips import CHIPS, GIB, chip_of
from jaxeff.plan.collectives import HOP, Links
from jaxeff.plan.hlo import Module, Place
from jaxeff.plan.parts import COPIES, PARTS, WAITING, part_of
from jaxeff.plan.timeline import REACHED, Timeline

CHIP = CHIPS["v5e"]
MS = 1e-3


def grid(*sides: int, axes=("data", "fsdp", "tensor", "sequence"), shape=(2, 2, 1, 2)):
    """A mesh of made-up chips that lie in a grid of these sides."""
    chips = np.empty(int(np.prod(sides)), object)
    for i, coords in enumerate(np.ndindex(*sides)):
        chips[i] = SimpleNamespace(coords=coords)
    return SimpleNamespace(devices=chips.reshape(shape), axis_names=axes, size=chips.size)


def module(*lines: str, extra: str = "") -> Module:
    body = "".join(f"  {line}\n" for line in lines)
    return Module(f"HloModule m\n{extra}\nENTRY %main (x: f32[]) -> f32[] {{\n{body}}}\n")


def cycles(ms: float) -> str:
    return f'backend_config={{"estimated_cycles":"{round(ms * MS * CHIP.clock)}"}}'


@pytest.mark.parametrize(
    ("groups", "axes", "n"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("sequence",), 2),
        ("{{0,2},{1,3},{4,6},{5,7}}", ("fsdp",), 2),
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",), 2),
        ("[4,2]<=[8]", ("sequence",), 2),
        ("[4,2]<=[2,4]T(1,0)", ("data",), 2),
        ("[2,4]<=[8]", ("fsdp", "sequence"), 4),
        ("mesh['a'=2,'b'=2,'c'=2] {'b'}", ("fsdp",), 2),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ("data", "sequence"), 4),
        ("{}", ("data", "fsdp", "sequence"), 8),
    ],
)
def test_groups_of_every_spelling_lie_along_axes_of_the_mesh(groups, axes, n):
    m = module(f"%r = f32[1024]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%sum")
    found = Links(grid(2, 4), CHIP).read(m, m.computations["main"][0])
    assert (found.kind, found.axes, found.n, found.bytes, found.numbers) == ("all-reduce", axes, n, 4096, (1024,))


def test_a_permutation_is_read_by_its_pairs():
    m = module("%r = f32[8]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,2},{2,0},{1,3},{3,1}}")
    found = Links(grid(2, 4), CHIP).read(m, m.computations["main"][0])
    assert (found.axes, found.n) == (("fsdp",), 2)


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        # One gibibyte over 16 chips in a ring of v5e, two links; twice for a sum; a quarter of all where all change places.
        ("f32[268435456]{0} all-gather(%x), dimensions={0}", GIB * 15 / 16 / 100e9 + 7 * HOP),
        ("f32[16777216]{0} reduce-scatter(%x), dimensions={0}", GIB * 15 / 16 / 100e9 + 7 * HOP),
        ("f32[268435456]{0} all-reduce(%x), to_apply=%s", 2 * GIB * 15 / 16 / 100e9 + 7 * HOP),
        ("f32[268435456]{0} all-to-all(%x), dimensions={0}", GIB * 16 / 4 / 100e9 + 7 * HOP),
        ("f32[268435456]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}", GIB / 50e9 + HOP),
    ],
)
def test_times_follow_the_model_of_the_links(line, seconds):
    ring = grid(16, shape=(1, 16, 1, 1))
    m = module(f"%r = {line}, channel_id=1, replica_groups={{}}")
    assert Links(ring, CHIP).read(m, m.computations["main"][0]).seconds == pytest.approx(seconds)


def test_an_open_row_of_chips_has_half_the_links_of_a_ring_and_two_dimensions_twice_those_of_one():
    m = module("%r = f32[268435456]{0} all-gather(%x), replica_groups={}, channel_id=1")
    took = lambda *sides: (
        Links(grid(*sides, shape=(1, int(np.prod(sides)), 1, 1)), CHIP).read(m, m.computations["main"][0]).seconds
    )
    assert took(8) == pytest.approx(GIB * 7 / 8 / 50e9 + 3 * HOP)
    assert took(2, 4) == pytest.approx(GIB * 7 / 8 / 100e9 + 2 * HOP)
    m = module("%r = f32[268435456]{0} all-to-all(%x), replica_groups={}, channel_id=1")
    assert took(2, 4) == pytest.approx(GIB * 4 / 4 / 50e9 + 2 * HOP), "half of all passes the middle of the longer side"


START = "%s = (f32[64,1048576]{1,0}, f32[256,1048576]{1,0}) all-gather-start(%x), channel_id=1, replica_groups={}, dimensions={0}"
DONE = "%d = f32[256,1048576]{1,0} all-gather-done(%s)"


def spent(*lines: str, extra: str = "", n: int = 4):
    return Timeline(module(*lines, extra=extra), Links(grid(n, shape=(1, n, 1, 1)), CHIP), CHIP).of()


def test_what_is_computed_meanwhile_hides_a_communication():
    takes = GIB * 3 / 4 / 50e9 + HOP  # 16.1 ms
    work = "%w{} = f32[8]{{0}} fusion(%x), kind=kLoop, calls=%f, {}"
    hidden = spent(START, work.format(1, cycles(20)), DONE)
    assert hidden.seconds == pytest.approx(20 * MS) and hidden.sent[0].exposed == 0
    late = spent(START, work.format(1, cycles(10)), DONE)
    assert late.seconds == pytest.approx(takes) and late.parts[WAITING] == pytest.approx(takes - 10 * MS)
    at_once = spent(
        "%r = f32[256,1048576]{1,0} all-gather(%x), channel_id=1, replica_groups={}", work.format(1, cycles(10))
    )
    assert at_once.seconds == pytest.approx(takes + 10 * MS)


def test_two_communications_share_the_links():
    second = (
        START.replace("%s =", "%t =").replace("channel_id=1", "channel_id=2"),
        DONE.replace("%d", "%e").replace("%s", "%t"),
    )
    both = spent(START, second[0], DONE, second[1])
    assert both.seconds == pytest.approx(2 * spent(START, DONE).seconds)


def test_a_fused_communication_goes_on_while_its_fusions_compute():
    fused = """
%begin (p: f32[8]) -> f32[8] {
  %g = f32[256,1048576]{1,0} all-gather(%p), channel_id=7, replica_groups={}, async_collective_fusion_config={}
  ROOT %c = f32[8]{0} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%end (q: f32[8]) -> f32[8] {
  %h = f32[256,1048576]{1,0} all-gather(%q), channel_id=7, replica_groups={}, async_collective_fusion_config={}
  ROOT %c2 = f32[8]{0} custom-call(%h), custom_call_target="AsyncCollectiveDone"
}
"""
    lines = [
        "%a = f32[8]{0} fusion(%x), kind=kCustom, calls=%begin",
        f"%b = f32[8]{{0}} fusion(%x), kind=kLoop, calls=%f, {cycles(30)}",
        "%c3 = f32[8]{0} fusion(%x), kind=kCustom, calls=%end",
    ]
    found = spent(*lines, extra=fused)
    assert found.seconds == pytest.approx(30 * MS) and [s.times for s in found.sent] == [1]
    # A loop between the two takes it along: what it sends is not sent anew by each turn.
    within = (
        fused
        + f"""
%along (r: f32[8]) -> f32[8] {{
  %k = f32[256,1048576]{{1,0}} all-gather(%r), channel_id=7, replica_groups={{}}, async_collective_fusion_config={{}}
}}

%turn (t: f32[8]) -> f32[8] {{
  %l = f32[8]{{0}} fusion(%t), kind=kCustom, calls=%along, {cycles(5)}
}}

%condition (t: f32[8]) -> pred[] {{
  %n = s32[] constant(6)
}}
"""
    )
    lines[1] = "%b = f32[8]{0} while(%x), condition=%condition, body=%turn"
    found = spent(*lines, extra=within)
    assert found.seconds == pytest.approx(6 * 5 * MS) and [s.times for s in found.sent] == [1]


def test_loops_take_their_turns_and_copies_from_main_memory_are_waited_for():
    loop = f"""
%body (t: f32[8]) -> f32[8] {{
  %w = f32[8]{{0}} fusion(%t), kind=kLoop, calls=%f, {cycles(2)}
}}

%condition (t: f32[8]) -> pred[] {{
  %n = s32[] constant(5)
}}
"""
    copied = "%c = (f32[268435456]{0:S(1)}, f32[268435456]{0}, u32[]) copy-start(%x)"
    found = spent(
        copied,
        "%l = f32[8]{0} while(%x), condition=%condition, body=%body",
        "%cd = f32[268435456]{0} copy-done(%c)",
        extra=loop,
    )
    assert found.seconds == pytest.approx(5 * 2 * MS) and found.works[0].times == 5, "the copy is done meanwhile"
    alone = spent(copied, "%cd = f32[268435456]{0} copy-done(%c)")
    assert alone.parts == {COPIES: pytest.approx(GIB / CHIP.bandwidth)}


def test_kernels_are_counted_where_their_time_is_not_known():
    found = spent('%k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call"')
    assert dict(found.unknown) == {"k": 1} and found.seconds == 0


@pytest.mark.parametrize(("name", "times"), [("splash_fwd", 1), ("splash_dkv", 2), ("splash_dq", 1.5)])
def test_a_kernel_that_tells_its_products_takes_their_time_at_the_assumed_share_of_the_peak(name, times):
    scope = 'metadata={op_name="jit(step)/kernel_flops_1970000000_width_64/pallas_call"}'
    found = spent(f'%{name} = f32[8]{{0}} custom-call(%x), custom_call_target="tpu_custom_call", {scope}')
    padded = 2  # 64 channels on units of 128
    assert found.seconds == pytest.approx(times * padded * 1.97e9 / (REACHED * CHIP.flops)) and not found.unknown


def test_a_kernel_that_tells_its_cycles_takes_them():
    scope = 'metadata={op_name="jit(step)/kernel_flops_0_width_128_cycles_3000000/pallas_call"}'
    found = spent(f'%k = f32[8]{{0}} custom-call(%x), custom_call_target="tpu_custom_call", {scope}')
    assert found.seconds == pytest.approx(3e6 / CHIP.clock) and not found.unknown and not found.works[0].flops


@pytest.mark.parametrize(
    ("frames", "part"),
    [
        (
            ["core/matmul.py:einsum", "core/weight.py:einsum", "mixers/base.py:project", "mixers/gqa.py:GQA.apply"],
            "projections",
        ),
        (["core/matmul.py:einsum", "mixers/base.py:project", "mixers/mlp.py:MLP.apply"], "MLP"),
        (["ops/attention.py:attention", "mixers/gqa.py:GQA.apply", "models/block.py:Block.apply"], "attention"),
        (["ops/norm.py:rms_norm", "mixers/norm.py:RMSNorm.apply", "mixers/gqa.py:GQA._project"], "norm"),
        (["ops/rope.py:rope", "mixers/gqa.py:GQA._project"], "rotation"),
        (["mixers/mamba2.py:Mamba2._gate", "models/block.py:Block.apply"], "mixer"),
        (["ops/gated_linear.py:gated_linear", "mixers/mamba2.py:Mamba2._scan"], "recurrence"),
        (["ops/losses.py:cross_entropy", "objectives/causal.py:Causal.sums"], "head and loss"),
        (["core/weight.py:take", "models/lm.py:LM.hidden"], "embedding"),
        (["models/stack.py:Stack._run"], "layers"),
        (["train/step.py:_make_step.<locals>.descended.<locals>.<lambda>"], "optimizer"),
        ([], COPIES),
    ],
)
def test_instructions_belong_to_parts_of_the_model(frames, part):
    stack = [Place(f"/x/jaxeff/{frame.partition(':')[0]}", frame.partition(":")[2], 1) for frame in frames]
    assert part_of(stack) == part and part in PARTS


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        ("v5f:2x4", "no kind of TPU is called 'v5f'; did you mean 'v5p' or 'v5e'"),
        ("v5e", "a topology is a kind of TPU and its grid, v5e:4x4, found 'v5e'"),
        ("v5e:2xx4", "found 'v5e:2xx4'"),
    ],
)
def test_topologies_that_are_none(topology, says):
    with pytest.raises(UserError, match=says):
        chip_of(topology)
