"""A text that starts in the first slice starts in no other one. B batch, T time, D model."""

import pytest

from jaxeff.core.sharding import make_mesh
from tests.closeness import assert_close
from tests.sequence.test_mixers import CASES, OUTPUTS, SLICES, arguments, run


@pytest.mark.xfail(strict=True, reason="RGLRU takes the first valid token of each slice for the first of a text")
@pytest.mark.parametrize("texts", [True, False], ids=["several", "one"])
def test_rglru_without_a_state(texts):
    mixer = CASES["rglru"]
    params, x_BTD, ctx = arguments(mixer, texts)
    (expected, _), _ = run(mixer, params, x_BTD, ctx, None, None)
    (found, _), _ = run(mixer, params, x_BTD, ctx, make_mesh(sequence=SLICES), None)
    assert_close(found, expected, OUTPUTS, "y")
