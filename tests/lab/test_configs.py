"""Every ablation of the repository can be made, and its models are of one size where it says so."""

import pytest

from jaxeff.core.spec import count
from jaxeff.lab.ablation import load
from tests.documented import ROOT

CONFIGS = sorted((ROOT / "configs/ablations").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_models_are_of_one_size(path):
    ablation = load(path)
    sizes = {name: count(ablation.matched(name)[0].specs) for name in ablation.names}
    if ablation.match == "parameters":
        target = sizes[ablation.baseline]
        assert all(abs(size / target - 1) <= ablation.tolerance for size in sizes.values()), sizes
