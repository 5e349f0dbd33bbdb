"""Cycles read from the text of a compiled module: loops by their turns, products apart."""

import pytest

from jaxeff.bench.cycles import Cycles, estimated

MODULE = """HloModule jit_step, is_scheduled=true

%fused_product (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %convolution.1 = f32[8]{0} convolution(%p, %p), dim_labels=bf_io->bf
}

%fused_sum (p.1: f32[8]) -> f32[8] {
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
  %fusion.2 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_sum, backend_config={"estimated_cycles":"7"}
  ROOT %while.1 = (s32[], f32[8]) while(%x), condition=%condition, body=%body
}
"""


def test_loops_count_as_often_as_they_turn_and_products_apart():
    assert estimated(MODULE) == Cycles(matmul=10 * 100, other=7 + 10 * 4 * 3)


def test_what_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="how often the loop with the condition condition turns is not known"):
        estimated(MODULE.replace("constant(10)", "parameter(1)"))
    windowed = MODULE.replace("s32[]{:T(128)} constant(10)", "u32[]{:T(128)} constant(10)")  # a product in windows
    assert windowed != MODULE and estimated(windowed) == estimated(MODULE)
    with pytest.raises(ValueError, match="calls a kernel"):
        estimated(
            MODULE.replace("fusion(%x), kind=kLoop", 'custom-call(%x), custom_call_target="tpu_custom_call"').replace(
                '"7"', "7"
            )
        )
    with pytest.raises(ValueError, match="not compiled for a TPU"):
        estimated(MODULE.replace("estimated_cycles", "cycles"))
