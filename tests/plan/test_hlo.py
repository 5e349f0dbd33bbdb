"""What is read from the text of a compiled module: loops by their turns, products, bytes, lines of Python."""

import pytest

from jaxeff.plan.hlo import Module, shapes

MODULE = """HloModule jit_step, is_scheduled=true

FileNames
1 "/here/jaxeff/mixers/gqa.py"
2 "/here/jaxeff/models/block.py"

FunctionNames
1 "GQA.apply"
2 "Block.apply"

FileLocations
1 {file_name_id=2 function_name_id=2 line=95 end_line=95 column=1 end_column=2}
2 {file_name_id=1 function_name_id=1 line=145 end_line=145 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%fused_product (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %dot.1 = f32[8]{0} dot(%p, %p), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}

%fused_sum (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%p.1, %p.1)
}

%inner_body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.3 = f32[8]{0} fusion(%t), kind=kLoop, calls=%fused_sum, backend_config={"estimated_cycles":"3"}
}

%inner_condition (t.1: (s32[], f32[8])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (t.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = f32[8]{0} fusion(%t.2), kind=kOutput, calls=%fused_product, backend_config={"estimated_cycles":"100"}
  %while.2 = (s32[]) while(%t.2), condition=%inner_condition, body=%inner_body, backend_config={"known_trip_count":{"n":"4"}}
}

%condition (t.3: (s32[], f32[8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(10)
  ROOT %lt.1 = pred[] compare(%i.1, %constant.1), direction=LT
}

ENTRY %main.1 (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %fusion.2 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_sum, metadata={stack_frame_id=2}, config={"estimated_cycles":"7"}
  ROOT %while.1 = (s32[], f32[8]) while(%x), condition=%condition, body=%body
}
"""


def cycles(text: str) -> tuple[float, float]:
    """(of instructions with a product, of all others)."""
    module, found = Module(text), [0.0, 0.0]
    for instruction, times in module.walk():
        found[0 if module.multiplies(instruction) else 1] += times * (instruction.cycles or 0.0)
    return tuple(found)


def test_loops_count_as_often_as_they_turn_and_products_apart():
    assert cycles(MODULE) == (10 * 100, 7 + 10 * 4 * 3)
    module = Module(MODULE)
    assert module.cost(module.entry) == sum(cycles(MODULE))
    windowed = MODULE.replace("s32[]{:T(128)} constant(10)", "u32[]{:T(128)} constant(10)")  # a product in windows
    assert windowed != MODULE and cycles(windowed) == cycles(MODULE)


def test_what_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="how often the loop with the condition condition turns is not known"):
        cycles(MODULE.replace("constant(10)", "parameter(1)"))
    with pytest.raises(ValueError, match="no text of an XLA module"):
        Module("HloModule jit_step")


def test_a_loop_that_counts_in_twos_turns_half_as_often():
    looked_at = "  %i.1 = s32[] get-tuple-element(%t.3), index=0\n  %constant.1 ="
    added = """  %i.2 = s32[] get-tuple-element(%t.2), index=0
  %two = s32[] constant(2)
  %add.1 = s32[] add(%i.2, %two)
  ROOT %tuple.1 = (s32[], f32[8]) tuple(%add.1, %fusion.1)
}

%condition"""
    text = MODULE.replace("  %constant.1 =", looked_at)
    assert text != MODULE and cycles(text) == cycles(MODULE)
    whole, halved = cycles(MODULE), cycles(text.replace("}\n\n%condition", added))
    assert halved[0] == whole[0] / 2 and halved[1] - 7 == (whole[1] - 7) / 2


def test_a_kernel_whose_attributes_take_several_lines_does_not_end_its_computation():
    text = MODULE.replace(
        "  %fusion.2 =",
        '  %kernel = f32[8]{0} custom-call(%x), custom_call_target="other", frontend_attributes={kernel_metadata={\n"a":"b"\n}}, '
        'metadata={op_name="jit(step)/pallas_call" stack_frame_id=2}\n  %fusion.2 =',
    )
    module = Module(text)
    assert [i.name for i in module.computations["main.1"]] == ["x", "kernel", "fusion.2", "while.1"]
    assert module.computations["main.1"][1].operation == "jit(step)/pallas_call"


def test_stacks_are_those_of_python_the_innermost_first():
    module = Module(MODULE)
    stack = module.stack(module.computations["main.1"][1])
    assert [(p.file[-7:], p.function, p.line) for p in stack] == [
        ("/gqa.py", "GQA.apply", 145),
        ("lock.py", "Block.apply", 95),
    ]
    assert module.stack(module.computations["main.1"][0]) == []


@pytest.mark.parametrize(
    ("type", "size"),
    [
        ("f32[8]{0}", 32),
        ("pred[]", 1),
        ("bf16[3,5]{1,0}", 30),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 8 * 128 * 2),  # whole tiles
        ("f32[2,130,9]{2,1,0:T(8,128)}", 2 * 136 * 128 * 4),
        ("f32[2,130,9]{1,0,2:T(8,128)}", 9 * 8 * 256 * 4),  # the second dimension is the innermost
        ("s4[16]{0}", 8),
        ("(f32[2]{0}, /*index=1*/s8[3]{0})", 11),
    ],
)
def test_bytes_are_those_that_lie_in_memory(type, size):
    assert sum(shape.bytes for shape in shapes(type)) == size


def test_an_array_in_the_chips_own_memory_is_told_apart():
    main, own = shapes("(f32[8]{0:T(128)}, f32[8]{0:T(128)S(1)})")
    assert (main.space, own.space) == (0, 1)


@pytest.mark.parametrize(
    ("operands", "product", "flops"),
    [
        (
            ("f32[5,7]{1,0}", "f32[7,3]{1,0}"),
            "f32[5,3]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
            2 * 5 * 7 * 3,
        ),
        (
            ("bf16[5,7]{1,0}", "bf16[7,3]{1,0}"),
            "bf16[5,3]{1,0} convolution(%a, %b), dim_labels=bf_io->bf",
            2 * 5 * 7 * 3,
        ),
        # A product of 2 x 8 pairs of matrices, as XLA writes it for a TPU: every other position is a hole of dilation.
        (
            ("f32[2,8,256,64]{3,2,1,0}", "f32[2,8,96,64]{3,2,1,0}"),
            "f32[2,8,256,96]{3,2,1,0} convolution(%a, %b), window={size=2x8 stride=1x7 lhs_dilate=2x8}, dim_labels=01bf_01oi->01bf",
            2 * 2 * 8 * 256 * 64 * 96,
        ),
        # A true convolution of width 4 with padding at its left: 9 positions of which the first three meet less of the kernel.
        (
            ("f32[1,9,6]{2,1,0}", "f32[4,6,5]{2,1,0}"),
            "f32[1,9,5]{2,1,0} convolution(%a, %b), window={size=4 pad=3_0}, dim_labels=b0f_0io->b0f",
            2 * (4 * 9 - 1 - 2 - 3) * 6 * 5,
        ),
    ],
)
def test_flops_are_those_of_the_product(operands, product, flops):
    left, right = operands
    lines = (f"%a = {left} parameter(0)", f"%b = {right} parameter(1)", f"ROOT %c = {product}")
    text = "HloModule m\n\nENTRY %main (a: f32[]) -> f32[] {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"
    module = Module(text)
    assert module.flops(module.computations["main"][-1]) == flops


def test_a_slice_of_an_array_is_what_is_read_of_it():
    text = """HloModule m

%fused (p0: f32[16,128], p1: s32[]) -> f32[1,128] {
  %p0 = f32[16,128]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %slice = f32[1,128]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,128}
}

%around (r0: f32[16,128], r1: s32[]) -> f32[1,128] {
  %r0 = f32[16,128]{1,0} parameter(0)
  %r1 = s32[] parameter(1)
  ROOT %within = f32[1,128]{1,0} fusion(%r0, %r1), kind=kLoop, calls=%fused
}

%update (q0: f32[16,128], q1: f32[1,128], q2: s32[]) -> f32[16,128] {
  %q0 = f32[16,128]{1,0} parameter(0)
  %q1 = f32[1,128]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %written = f32[16,128]{1,0} dynamic-update-slice(%q0, %q1, %q2, %q2)
}

ENTRY %main (x: f32[16,128], i: s32[]) -> f32[16,128] {
  %x = f32[16,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %one = f32[1,128]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
  %nested = f32[1,128]{1,0} fusion(%x, %i), kind=kLoop, calls=%around
  %own = f32[1,128]{1,0:T(1,128)S(1)} copy(%one)
  ROOT %all = f32[16,128]{1,0} fusion(%x, %one, %i), kind=kLoop, calls=%update
}
"""
    module = Module(text)
    _, _, one, nested, own, written = module.computations["main"]
    assert module.moved(one) == module.moved(nested) == 512 + 4 + 512
    assert module.moved(own) == 512, "what it writes does not lie in main memory"
    assert module.moved(written) == 512 + 4 + 512, "one row read, one written, in place"
