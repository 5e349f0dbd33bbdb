"""`jaxeff env`: what a bug report needs, also where JAX does not start."""

import os
import platform
import subprocess
import sys

import jax
import pytest

import jaxeff
from jaxeff.train import environment as module
from jaxeff.train.environment import environment
from tests.cli.workdirs import said


def facts(text: str) -> dict[str, str]:
    """name -> text, of lines in two columns."""
    return {name: rest.strip() for name, _, rest in (line.partition("  ") for line in text.splitlines())}


def test_versions_devices_and_repository(capsys):
    told = facts(said(capsys, "env"))
    assert told["jaxeff"] == jaxeff.__version__ and told["python"] == platform.python_version()
    assert told["jax"] == jax.__version__
    assert {"jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "git", "system", "processor"} <= {*told}
    assert told["platform"] == "cpu" and told["devices"] == f"{jax.device_count()} x cpu"
    assert told["XLA_FLAGS"] == os.environ["XLA_FLAGS"] and told["JAX_PLATFORMS"] == "cpu"


def test_variables_of_others_stay_out(monkeypatch):
    monkeypatch.setenv("JAX_LOG_COMPILES", "1")
    monkeypatch.setenv("API_TOKEN", "secret")
    assert facts(environment())["JAX_LOG_COMPILES"] == "1" and "secret" not in environment()


def test_without_flags_it_says_so(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    assert facts(environment())["XLA_FLAGS"] == "not set"


def test_packages_that_are_absent_are_named(monkeypatch):
    monkeypatch.setattr(module, "packages", lambda: {"jax": "1", "grain": None, "flax": None})
    assert facts(environment())["not installed"] == "grain, flax"


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (None, {"git": "no repository"}),
        ({"commit": "abc", "changed": []}, {"git": "abc", "changed": "nothing"}),
        ({"commit": "abc", "changed": [" M a.py"]}, {"changed": "1 files: a.py"}),
        ({"commit": "abc", "changed": [f" M {i}.py" for i in range(7)]}, {"changed": "7 files: 0.py, 1.py, 2.py, 3.py, 4.py, ..."}),
    ],
)  # fmt: skip
def test_state_of_the_repository(monkeypatch, state, told):
    monkeypatch.setattr(module, "git", lambda: state)
    assert told.items() <= facts(environment()).items()


def test_it_answers_where_jax_starts_no_backend():
    words = [sys.executable, "-m", "jaxeff.cli", "env"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "nowhere"})
    told = facts(done.stdout)
    assert done.returncode == 0, done.stderr
    assert told["platform"].startswith("none, JAX cannot start a backend: RuntimeError: ") and "devices" not in told
    assert told["JAX_PLATFORMS"] == "nowhere" and told["jax"] == jax.__version__
