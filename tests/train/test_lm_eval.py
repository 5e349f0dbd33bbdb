"""`jaxeff eval --tasks`: a run and a public checkpoint as models of lm-eval, whose package is played by a stub here; the package
itself is there in `make parity`."""

import math
import sys
import types

import pytest

from jaxeff.cli import main
from jaxeff.core.errors import UserError
from jaxeff.evaluate.lm_eval import register
from tests.interop.checkpoint import checkpoint
from tests.train.tiny import CONFIG

REQUESTS = {
    "loglikelihood": [("the cat", " sat"), ("", "the")],
    "loglikelihood_rolling": [("the cat sat",)],
    "generate_until": [("the cat", {"until": ["t"], "max_gen_toks": 4})],
}


class Stub:
    """What of lm-eval is touched; the scores are the answers."""

    def __init__(self):
        self.models = {}

    def register_model(self, name):
        return lambda made: self.models.setdefault(name, made)

    def simple_evaluate(self, model, model_args, tasks, task_manager):
        assert tasks == ["answer", "choice"] and task_manager.include_path is not None
        self.made = self.models[model](**model_args)
        asked = {kind: [types.SimpleNamespace(args=args) for args in each] for kind, each in REQUESTS.items()}
        return {kind: getattr(self.made, kind)(each) for kind, each in asked.items()}

    def modules(self):
        """name -> module."""

        class LM:
            pass

        class TaskManager:
            def __init__(self, include_path):
                self.include_path, self.all_tasks = include_path, ["answer", "choice"]

        contents = {
            "lm_eval": {"simple_evaluate": self.simple_evaluate},
            "lm_eval.api": {},
            "lm_eval.api.model": {"LM": LM},
            "lm_eval.api.registry": {"register_model": self.register_model},
            "lm_eval.tasks": {"TaskManager": TaskManager},
            "lm_eval.utils": {"make_table": repr},
        }
        found = {name: types.ModuleType(name) for name in contents}
        for name, module in found.items():
            vars(module).update(contents[name])
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(found[parent], last, module)
        return found


@pytest.fixture
def forgotten(monkeypatch):
    """Nothing registered, before and after."""
    monkeypatch.delitem(sys.modules, "jaxeff.train.lm_eval", raising=False)
    register.cache_clear()
    yield
    register.cache_clear()
    sys.modules.pop("jaxeff.train.lm_eval", None)


@pytest.fixture
def package(monkeypatch, forgotten):
    stub = Stub()
    for name, module in stub.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return stub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        found = tmp_path_factory.mktemp("lm_eval")
        patch.setenv("JAXEFF_CACHE", str(found / "cache"))
        checkpoint(found / "model")
        (found / "tiny.py").write_text(CONFIG)
        words = ["--workdir", str(found / "run"), "--set", "train.steps=1"]
        assert main(["train", str(found / "tiny.py"), *words]) == 0
        yield found


@pytest.mark.parametrize("which", ["--model", "--workdir"])
def test_scored(home, package, capsys, which):
    name = f"hf:{home / 'model'}" if which == "--model" else str(home / "run")
    words = ["eval", which, name, "--tasks", "answer,choice", "--include-path", str(home)]
    capsys.readouterr()
    assert main(words) == 0
    found = eval(capsys.readouterr().out)
    (first, greedy), second = found["loglikelihood"]
    assert first < 0 and not greedy and second[0] < 0
    assert found["loglikelihood_rolling"][0] < 0 and "t" not in found["generate_until"][0]
    model = package.made
    own = model.evaluator.tokenizer
    assert (model.chat_template(True) == own.template) if which == "--model" else model.chat_template(True) is None
    assert model.chat_template(False) is None and len(model.tokenizer_name) == 16
    if which == "--model":
        assert model.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=False) == "<|user|>a"
    else:
        # A run was trained on no mark that begins a text: it is not scored.
        n = len(own.scored("the cat sat"))
        assert n == len("the cat sat") and found["loglikelihood_rolling"][0] > -2 * n * math.log(own.vocab_size)


def test_by_the_name_that_lm_eval_knows(home, package):
    import jaxeff.train.lm_eval  # noqa: F401  registers

    model = package.models["jaxeff"](model=f"hf:{home / 'model'}", batch_size="auto", max_length=32, device=None)
    assert (model.evaluator.batch_size, model.evaluator.max_length) == (8, 32)


def test_what_cannot_be(home, package, capsys):
    def refused(*words):
        capsys.readouterr()
        assert main(["eval", "--model", f"hf:{home / 'model'}", "--tasks", *words]) == 2
        return capsys.readouterr().err

    assert "no task of lm-eval is called 'choise'; did you mean 'choice'" in refused("answer,choise")
    assert "no such folder" in refused("answer", "--include-path", str(home / "none"))


def test_without_the_package(forgotten, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="pip install 'jaxeff\\[lm_eval\\]'"):
        import jaxeff.train.lm_eval  # noqa: F401


def test_a_run_that_reads_no_text(package, monkeypatch):
    import jaxeff.train.lm_eval as module

    run = types.SimpleNamespace(prepared=object(), experiment=types.SimpleNamespace(data=object()))
    monkeypatch.setattr(module, "load_trained", lambda *_: run)
    with pytest.raises(UserError, match="runs/x was trained on object, not on text"):
        module.load("runs/x")
