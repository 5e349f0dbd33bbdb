"""The time left, on a clock of our own."""

import pytest

from jaxeff.lab.estimate import Estimate, clock


def test_steps_and_compilations_are_learnt_apart():
    time = [0.0]
    estimate = Estimate(steps=40, compilations=3, now=lambda: time[0])

    def run(model, compiling):
        estimate.begin(model)
        time[0] += compiling
        for step in range(2, 11, 2):
            time[0] += 1.0
            estimate.step(step)
        estimate.end(10)

    assert estimate.left() is None
    run("a", compiling=9.0)
    assert estimate.left() == pytest.approx(30 * 0.5 + 2 * 10.0)
    run("a", compiling=0.0)
    assert estimate.left() == pytest.approx(20 * 0.5 + 2 * 10.0)
    estimate.skip(10)
    run("b", compiling=19.0)
    assert estimate.left() == pytest.approx(0 * 0.5 + 1 * 15.0)


def test_clock():
    assert [clock(s) for s in (None, 0, 59.4, 185)] == ["?", "0:00", "0:59", "3:05"]
