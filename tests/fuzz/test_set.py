"""`--set` of any text gives a config or a UserError."""

import contextlib

from hypothesis import example, given
from hypothesis import strategies as st

from jaxeff.core.errors import UserError
from jaxeff.train.experiment import Experiment
from jaxeff.train.overrides import override, paths
from tests.fuzz.odd import TEXTS
from tests.train.test_overrides import RICH
from tests.train.tiny import experiment

BASES = {"tiny": experiment(), "rich": RICH}
PATHS = sorted({path for base in BASES.values() for path in paths(base)})
PARTS = sorted({part for path in PATHS for part in path.split(".")})


def config_or_user_error(base: Experiment, assignments: list[str]) -> None:
    """Anything else passes through."""
    with contextlib.suppress(UserError):
        assert isinstance(override(base, assignments), Experiment)


@st.composite
def near_paths(draw) -> str:
    """A path of a config, or one with a part too many, too few, or another."""
    parts = draw(st.sampled_from(PATHS)).split(".")
    how = draw(st.sampled_from(("keep", "keep", "keep", "cut", "add", "swap")))
    i = draw(st.integers(0, len(parts) - 1))
    if how == "cut":
        del parts[i]
    elif how != "keep":
        parts[i : i + (how == "swap")] = [draw(st.sampled_from(PARTS) | TEXTS)]
    return ".".join(parts)


@given(st.sampled_from(sorted(BASES)), st.text(max_size=40))
def test_any_text(base, text):
    config_or_user_error(BASES[base], [text])


@given(st.sampled_from(sorted(BASES)), near_paths(), TEXTS)
@example("tiny", "train.steps", "9" * 5000)
def test_a_real_path_and_an_odd_value(base, path, value):
    config_or_user_error(BASES[base], [f"{path}={value}"])


@given(st.sampled_from(sorted(BASES)), st.lists(st.tuples(near_paths(), TEXTS), min_size=2, max_size=4))
def test_several(base, pairs):
    config_or_user_error(BASES[base], [f"{path}={value}" for path, value in pairs])
