"""A run.json that was edited, cut or mixed up gives a run or a UserError."""

import contextlib
import json
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxeff.core.errors import UserError
from jaxeff.train.experiment import Experiment
from jaxeff.train.workdir import check_config, check_corpus, describe, read_run, stored_experiment
from tests.fuzz.odd import changed
from tests.train.test_overrides import RICH
from tests.train.tiny import experiment

PREPARED = types.SimpleNamespace(
    fingerprint="0123456789abcdef" * 4, statistics={"tokenizer": "abc", "rows": {"train": 3}}
)
# Names that a stored "type" may have by mistake or malice.
NAMES = (
    "jaxeff.models.lm.LM", "jaxeff.mixers.gqa.GQA", "jaxeff.mixers.mlp.MLP", "jaxeff.data.text.TextData",
    "jaxeff.data.grammar.Grammar", "jaxeff.train.experiment.Train", "jaxeff.train.experiment.Experiment",
    "jaxeff.train.experiment", "jaxeff.train.loop.fit", "jaxeff.train.loop.Result", "jaxeff.core.errors.UserError",
    "jaxeff", "jaxeff.", ".", "..", "jaxeff..x", "jaxeff.nothing.X", "jaxeff.transforms.LoRA", "builtins.dict",
    "os.system", "pathlib.Path", "x", "", "jaxeff.ops.rope.Rope", "jaxeff.train.state.State",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    """What two runs have written."""
    mesh = experiment().mesh.make()
    return {
        name: json.loads(json.dumps(describe(e, PREPARED, mesh)))
        for name, e in (("tiny", experiment()), ("rich", RICH))
    }


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed")


def value_or_user_error(workdir, content: bytes) -> None:
    """Reads it as `jaxeff train`, `eval` and the rest do; anything but a UserError passes through."""
    (workdir / "run.json").write_bytes(content)
    try:
        run = read_run(workdir)
    except UserError:
        return
    assert run is not None
    for use in (
        lambda: stored_experiment(workdir),
        lambda: check_config(run, experiment(), workdir),
        lambda: check_corpus(run, "0123", workdir),
    ):
        with contextlib.suppress(UserError):
            use()


@given(st.data(), st.sampled_from(("tiny", "rich")))
def test_changed(workdir, runs, data, name):
    run = data.draw(changed(runs[name], NAMES))
    value_or_user_error(workdir, json.dumps(run).encode("utf-8", "surrogatepass"))


@given(st.data(), st.sampled_from(("tiny", "rich")))
def test_changed_config(workdir, runs, data, name):
    config = data.draw(changed(runs[name]["config"], NAMES))
    value_or_user_error(workdir, json.dumps(runs[name] | {"config": config}).encode("utf-8", "surrogatepass"))


@given(st.data())
def test_cut_or_overwritten(workdir, runs, data):
    content = bytearray(json.dumps(runs["tiny"], indent=1).encode())
    i = data.draw(st.integers(0, len(content)))
    if data.draw(st.booleans()):
        del content[i:]
    else:
        new = data.draw(st.binary(max_size=6))
        content[i : i + len(new)] = new
    value_or_user_error(workdir, bytes(content))


@given(st.binary(max_size=60))
def test_any_bytes(workdir, content):
    value_or_user_error(workdir, content)


# Changes of a run.json that have been something else than a run or a UserError.
ONCE = {
    "corpus that is a number": {"corpus": 3},
    "corpus that is null": {"corpus": None},
    "config nested deeper than the stack": {"config": "DEEP"},
    "nested deeper than the stack": {"more": "VERY DEEP"},
}
DEPTHS = {b'"DEEP"': 500, b'"VERY DEEP"': 2000}


def altered(run: dict, change: dict) -> bytes:
    """A run.json with other values."""
    content = json.dumps(run | change).encode()
    for word, depth in DEPTHS.items():
        content = content.replace(word, b"[" * depth + b"]" * depth)
    return content


@pytest.mark.parametrize("name", sorted(ONCE))
def test_found_once(name, runs, workdir):
    value_or_user_error(workdir, altered(runs["tiny"], ONCE[name]))


# Values that would pass for what a run has written, and be an error without a word for the user at their next use.
PLAUSIBLE = {
    "starts that are null": {"starts": None},
    "starts that are no list": {"starts": {}},
    "data that are null": {"data": None},
    "config that is a number": {"config": 3},
    "config that is a part of one": {"config": {"type": "jaxeff.train.experiment.Train"}},
}


@pytest.mark.parametrize("name", sorted(PLAUSIBLE))
def test_plausible(name, runs, workdir):
    (workdir / "run.json").write_bytes(altered(runs["tiny"], PLAUSIBLE[name]))
    with pytest.raises(UserError):
        assert isinstance(read_run(workdir), dict) and isinstance(stored_experiment(workdir), Experiment)


def test_types_that_are_no_types(runs, workdir):
    """Nothing is run, and the message names what is wrong."""
    for name in ("jaxeff.cli.__main__.main", "jaxeff.cli.__main__", [], 3, None, {"a": 1}):
        (workdir / "run.json").write_bytes(altered(runs["tiny"], {"config": {"type": name}}))
        with pytest.raises(UserError, match="the stored config names"):
            stored_experiment(workdir)
