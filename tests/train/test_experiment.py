"""An experiment as a file, as JSON, and as a list of differences."""

import json

import pytest

from jaxeff.core.errors import UserError
from jaxeff.mixers.registry import CHANNEL_MIXERS, MIXERS
from jaxeff.models import LM
from jaxeff.train.config_file import load
from jaxeff.train.config_json import MISSING, diff, from_json, to_json
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.overrides import override
from tests.train.test_overrides import RICH
from tests.train.tiny import CONFIG, ROOT, experiment

TEXT = experiment("data.source=text", "data.source.paths=a,b")


@pytest.mark.parametrize("e", [experiment(), RICH, TEXT], ids=["tiny", "rich", "text"])
def test_json_and_back(e):
    assert from_json(json.loads(json.dumps(to_json(e)))) == e


@pytest.mark.parametrize("name", MIXERS | CHANNEL_MIXERS)
def test_every_mixer_is_json_and_back(name):
    mixer = (MIXERS | CHANNEL_MIXERS)[name]()
    assert from_json(json.loads(json.dumps(to_json(mixer), allow_nan=False))) == mixer


@pytest.mark.parametrize("value", [{1, 2}, float("inf"), (1.0, float("nan"))])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(UserError, match="a config may hold"):
        to_json(value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"type": "jaxeff.models.lm.LMM"}, "which is not there"),
        ({"type": "no.such.module.X"}, "which is not there"),
        ({"type": "jaxeff.core.errors.nearest"}, "no dataclass"),
        ({"steps": 3}, "which is not there"),
        (
            {"type": "jaxeff.train.experiment.Train", "stepz": 3},
            "gives jaxeff.train.experiment.Train a field 'stepz', .* another version of jaxeff wrote it",
        ),
        ({"type": "jaxeff.train.experiment.Train", "steps": 0}, "must be at least 1"),
    ],
)
def test_stored_configs_of_other_versions(data, words):
    with pytest.raises(UserError, match=words):
        from_json(data)


def test_diff_names_the_fields():
    a, b = experiment(), experiment("optim.lr=0.5", "train.init_from=x", "model.stages.0.pattern=gqa,gqa")
    found = {name: (x, y) for name, x, y in diff(a, b)}
    assert found["optim.lr"] == (0.01, 0.5) and found["train.init_from"] == (None, "x")
    assert found["model.stages.0.pattern.1.mixer.type"] == (MISSING, "jaxeff.mixers.gqa.GQA")
    assert diff(a, experiment()) == [] and diff(to_json(a), a) == []
    assert [name for name, _, _ in diff(experiment("optim.b1=1"), experiment())] == ["optim.b1"]


def test_load(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    assert load(path) == experiment()


def test_quickstart_loads():
    e = load(ROOT / "configs" / "quickstart.py")
    assert e.model.vocab_size >= e.data.tokenizer.vocab_size
    assert override(e, ["train.steps=3"]).train.steps == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def config(:\n", ":1: "),
        ("x = 1\n\ndef config():\n    retrun 3\n", ":4: "),
        ("def confg():\n    pass\n", "defines no function config(); did you mean 'confg'"),
        ("config = 3\n", "defines no function config()"),
        ("def config():\n    return 3\n", "config() must return an Experiment, found int"),
        ("import nowhere_to_be_found\n", ":1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def config():\n    return undefined\n", ":2: NameError"),
        ("\nx = 1 / 0\n", ":2: ZeroDivisionError"),
        ("from jaxeff.models import LM\n\ndef config():\n    return LM(10, widht=3)\n", ":4: TypeError"),
        (
            "from jaxeff.models import LM, Stage\n\ndef config():\n    return LM(10, stages=(Stage(('gqq',)),))\n",
            ":4: no mixer is called 'gqq'",
        ),
        ("from jaxeff.models import LM\n\ndef config():\n    return LM(0)\n", ":4: LM.vocab_size must be at least 1"),
    ],
)
def test_faulty_files_are_blamed_with_their_line(tmp_path, text, words):
    path = tmp_path / "c.py"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load(path)
    assert words in str(error.value) and str(path) in str(error.value)


def test_file_that_is_absent(tmp_path):
    (tmp_path / "quickstart.py").write_text("")
    with pytest.raises(UserError, match="no config file .*quickstar.py; did you mean .*quickstart.py"):
        load(tmp_path / "quickstar.py")
    with pytest.raises(UserError, match="no config file"):
        load(tmp_path / "nowhere" / "x.py")
    with pytest.raises(UserError, match="no config file"):
        load(tmp_path)


def test_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "c.py"
    path.write_bytes(b"# \xff\n")
    with pytest.raises(UserError, match="not UTF-8 at byte 2"):
        load(path)


def test_internal_errors_pass(tmp_path, monkeypatch):
    """A fault of the library is not blamed on the file."""
    path = tmp_path / "c.py"
    path.write_text("from jaxeff.models import LM\n\ndef config():\n    return LM(10)\n")

    def broken(self):
        raise RuntimeError("inside")

    monkeypatch.setattr(LM, "specs", broken)
    with pytest.raises(RuntimeError, match="inside"):
        load(path)


@pytest.mark.parametrize("fields", [{"steps": 0}, {"accumulate": 0}, {"save_every": 0}, {"keep": 0}])
def test_impossible_lengths(fields):
    with pytest.raises(ValueError, match="must be at least 1"):
        Train(**fields)


def test_unknown_precision():
    with pytest.raises(UserError, match="precision: expected one of .*, found 'float8'; did you mean .*'float16'"):
        Experiment(LM(10), precision="float8")
