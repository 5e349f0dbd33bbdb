"""Every ordered pair of methods works, or says which order does."""

import re

import jax
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec, init
from jaxeff.core.weight import einsum
from jaxeff.transforms import IA3, NF4, AdaLoRA, DoRA, Int4, Int8, LoRA, LowRank, Mask, VeRA, chain
from tests.closeness import assert_close

KEY = jax.random.key(0)
SPECS = {"w": Spec((8, 2, 6), (None,) * 3), "rest": Spec((3,), (None,), n_in=0)}
# From the weight outwards; those on one level do not stand on each other.
LEVELS = (
    {"LowRank": LowRank((("w", 3),))},
    {"Mask": Mask((("w", 0.3),))},
    {"Int8": Int8(("w",)), "Int4": Int4(("w",)), "NF4": NF4(("w",))},
    {
        "LoRA": LoRA((("w", 2),)),
        "DoRA": DoRA((("w", 2),)),
        "VeRA": VeRA((("w", 2),)),
        "AdaLoRA": AdaLoRA((("w", 2),), target=1.0),
        "IA3": IA3((("w", "out"),)),
    },
)
METHODS = {name: (level, method) for level, methods in enumerate(LEVELS) for name, method in methods.items()}


@pytest.mark.parametrize("second", METHODS)
@pytest.mark.parametrize("first", METHODS)
def test_a_pair(first, second):
    (level, one), (next_level, two) = METHODS[first], METHODS[second]
    if level >= next_level:
        says = rf"\({first}\)" if level == next_level else re.escape(f"chain({second}(...), {first}(...))")
        with pytest.raises(UserError, match=f"{second} matches 'w', which (is|has) .* already.*{says}"):
            chain(one, two).plan(SPECS)
        return
    plan, values = chain(one, two).plan(SPECS), init(SPECS, KEY)
    params = plan.lift(values, KEY)
    merged = plan.merge(params)
    assert jax.tree.structure(merged) == jax.tree.structure(values)
    x = jax.random.normal(KEY, (5, 8))
    assert_close(einsum("bi,ihc->bhc", x, params["w"]), einsum("bi,ihc->bhc", x, merged["w"]), 1e-6)
    trained = {path for path in ("w/base", "w/a", "rest") if plan.trains(path)}
    assert ("rest" in trained) == (next_level < 3)


def test_four_on_one_weight_keep_its_name_and_what_each_did():
    plan = chain(*(next(iter(methods.values())) for methods in LEVELS)).plan(SPECS)
    w = plan.lift(init(SPECS, KEY), KEY)["w"]
    assert [type(node).__name__ for node in (w, w.base, w.base.a, w.base.a.base)] == [
        "LoRAWeight",
        "LowRankWeight",
        "MaskWeight",
        "Int8Weight",
    ]
    share = np.mean(np.asarray(w.base.a.dense(np.float32)) == 0)
    assert abs(share - 0.3) < 0.05, "zeros stay zeros in eight bits"
