"""metrics.jsonl with anything between its lines: all good lines are read, and nothing raises."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxeff.train.workdir import Metrics, read_metrics
from tests.fuzz.odd import VALUES

GOOD = st.builds(
    lambda step, loss, more: more | {"step": step, "loss": loss, "tokens": 32 * step},
    st.integers(0, 10**6),
    st.none() | st.floats(0, 1e300),
    st.dictionaries(
        st.sampled_from(("lr", "eval_loss", "é", "")), st.none() | st.floats(0, 1e300) | st.integers(), max_size=3
    ),
)
NEXT = {"step": 0, "loss": 1.0, "tokens": 1}
DEEP = (b"[" * 2000, b'{"step":' * 2000)
ODD = (b'{"step": 1', b'{"step": true, "loss": 1.0, "tokens": 1}', b'{"loss": 1.0, "tokens": 1}', b"NaN", b"{}", *DEEP)


def bad(line: bytes) -> bool:
    """Whether a line is none of metrics, and all of one line."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    return b"\n" not in line and not (isinstance(found, dict) and type(found.get("step")) is int)


BAD = (st.binary(max_size=30) | VALUES.map(lambda v: json.dumps(v).encode()) | st.sampled_from(ODD)).filter(bad)
LINES = st.lists(GOOD | BAD, max_size=8)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed")


def written(workdir, lines, end: bool) -> list[dict]:
    """Writes them, and returns the good ones."""
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (workdir / "metrics.jsonl").write_bytes(b"\n".join(encoded) + (b"\n" if end and encoded else b""))
    return [line for line in lines if isinstance(line, dict)]


@given(LINES, st.booleans())
def test_good_lines_are_kept(workdir, lines, end):
    expected = written(workdir, lines, end)
    told = []
    found = read_metrics(workdir, told.append)
    assert repr(found) == repr(expected)
    assert len(told) <= 1


@given(LINES, st.booleans(), st.integers(0, 10**6))
def test_a_start_drops_what_comes_after_its_step_and_the_rest_can_be_read(workdir, lines, end, step):
    expected = [line for line in written(workdir, lines, end) if line["step"] <= step]
    metrics = Metrics(workdir, step, 1)
    metrics.write(NEXT | {"step": step + 1})
    metrics.close()
    told = []
    assert repr(read_metrics(workdir, told.append)) == repr([*expected, NEXT | {"step": step + 1}]) and not told
