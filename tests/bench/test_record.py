"""The record that every benchmark hands back, its table, its file, and the clocks."""

import io

from jaxeff.bench.record import machine, record, show
from jaxeff.bench.timing import matmul_clock
from jaxeff.evaluate.timing import alternate, summary


def entry(**more):
    return record("example", ours=1.0, peer=2.0, unit="s", ratio=2.0, meaning="more is better", **more)


def test_record_has_the_promised_fields():
    assert {"name", "ours", "peer", "unit", "ratio", "machine"} <= set(entry())
    assert {"processor", "cores", "backend", "jax", "python"} <= set(machine())


def test_table_shows_every_row_and_the_ratio():
    out = io.StringIO()
    show(entry(rows=[{"size": "small", "ms": 1.25}, {"size": "large", "ms": 10.0, "extra": 3}]), file=out)
    text = out.getvalue()
    assert all(word in text for word in ("small", "large", "1.25", "extra", "more is better", "ratio 2"))


def test_candidates_take_turns_and_warm_ups_do_not_count():
    order = []

    def clock(name, value):
        return lambda: order.append(name) or value

    times = alternate({"a": clock("a", 1.0), "b": clock("b", 2.0)}, rounds=3, warmup=1, pause=0.0)
    assert order == ["a", "b"] * 4
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert summary({"a": [3.0, 1.0, 2.0]}) == {"a": (2.0, 1.0)}


def test_matmul_clock_ticks():
    assert matmul_clock(n=64, repeats=1)() > 0
