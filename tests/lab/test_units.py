"""Finished parts are found again by the ablation that made them, and by no other."""

import pytest

from jaxeff.core.errors import UserError
from jaxeff.data.cache import digest as key
from jaxeff.lab.units import Units

IDENTITY = {"ablation": {"base": {"lr": 0.1, "steps": (1, 2)}}, "fingerprint": "abc"}


def test_a_part_is_found_by_its_key_only(tmp_path):
    units = Units(tmp_path, IDENTITY)
    units.put("gqa", "seed-0", key({"lr": 1}), {"lr": 1}, {"loss": 2.0})
    again = Units(tmp_path, IDENTITY)
    assert again.get("gqa", "seed-0", key({"lr": 1})) == {"loss": 2.0}
    assert again.get("gqa", "seed-0", key({"lr": 2})) is None
    assert again.get("gqa", "seed-1", key({"lr": 1})) is None


def test_a_damaged_part_is_missing(tmp_path):
    units = Units(tmp_path, IDENTITY)
    units.put("gqa", "cost", "k", {}, {"a": 1})
    path = tmp_path / "units" / "gqa" / "cost.json"
    path.write_text(path.read_text()[:20])
    assert units.get("gqa", "cost", "k") is None


def test_a_folder_of_another_ablation_is_refused_with_the_differing_fields(tmp_path):
    Units(tmp_path, IDENTITY)
    other = {"ablation": {"base": {"lr": 0.2, "steps": (1, 2)}}, "fingerprint": "abc"}
    with pytest.raises(UserError, match=r"another ablation \(ablation.base.lr: 0.1 there, 0.2 now\)"):
        Units(tmp_path, other)
