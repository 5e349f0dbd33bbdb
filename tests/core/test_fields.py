"""Values against their annotations."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.fields import a, check, mismatch


class Contract(Protocol):
    def act(self): ...


@dataclasses.dataclass(frozen=True)
class Inner:
    n: int = 1


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    items: tuple[Inner | str, ...] = ()
    mode: Literal["fast", "slow"] = "fast"


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        (3, int, None),
        (True, int, "an integer"),
        (3.0, int, "an integer"),
        (3, float, None),
        (float("inf"), float, "a finite number"),
        (True, float, "a finite number"),
        ("x", str, None),
        (None, int | None, None),
        ("x", int | None, "an integer or None"),
        ((1, 2), tuple[int, ...], None),
        ((1, "2"), tuple[int, ...], "a tuple, each item an integer"),
        ((1,), tuple[int, int], "a tuple of 2"),
        ([1], tuple[int, ...], "a tuple"),
        ("fast", Literal["fast", "slow"], None),
        ("quick", Literal["fast", "slow"], "one of 'fast', 'slow'"),
        (1, Literal[True], "one of True"),
        ({}, Mapping[str, int], None),
        (3, Mapping[str, int], "a mapping"),
        (len, Callable[..., Any], None),
        (3, Callable[..., Any], "a function"),
        (Inner(), Contract, None),
        (Inner, Contract, "a Contract"),
        ("x", Contract, "a Contract"),
        (Inner, Inner, "an Inner"),
        (object(), Any, None),
    ],
)
def test_mismatch(value, kind, wanted):
    assert mismatch(value, kind) == wanted


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Outer(inner=3), "inner: expected an Inner, found 3"),
        (Outer(inner=Inner), "inner: expected an Inner, found the class Inner: write Inner(...)"),
        (Outer(inner=Inner("1")), "inner.n: expected an integer, found '1'"),
        (Outer(items=("a", Inner(2.0))), "items.1.n: expected an integer, found 2.0"),
        (Outer(items=["a"]), "items: expected a tuple, found ['a']: write (a, b) or (a,) in place of [a, b] or [a]"),
        (Outer(mode="fats"), "mode: expected one of 'fast', 'slow', found 'fats'; did you mean 'fast'?"),
    ],
)
def test_the_field_is_named_by_its_path(value, said):
    with pytest.raises(UserError) as refusal:
        check(value)
    assert str(refusal.value) == said


def test_what_fits_passes():
    check(Outer(items=("a", Inner(2)), mode="slow"))


def test_articles():
    assert [a(name) for name in ("Optim", "Train", "LM", "GQA", "MLP")] == [
        "an Optim",
        "a Train",
        "an LM",
        "a GQA",
        "an MLP",
    ]
