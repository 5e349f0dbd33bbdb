"""What `make floor`, `make audit` and `make env` run; and the dependencies that no quick test of another file uses."""

import importlib.util
import io
import sys
import textwrap
from pathlib import Path

import pytest

from tests.train.tiny import experiment

ROOT = Path(__file__).parent.parent


def script(name: str):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_floors_are_those_of_setup_cfg():
    found = script("floor").floors((ROOT / "setup.cfg").read_text())
    assert {"jax", "numpy", "pytest", "flatbuffers", "mkdocs", "tensorboardX"} <= {*found}
    assert "torch" not in found and all(version[0].isdigit() for version in found.values())


def test_a_dependency_without_a_floor_is_refused():
    text = "[options]\ninstall_requires =\n    jax\n[options.extras_require]\n"
    with pytest.raises(ValueError, match="expected NAME >= VERSION, found 'jax'"):
        script("floor").floors(text)


def test_what_is_above_its_floor_is_told():
    floor = script("floor")
    assert floor.differing({"pytest": "1.0", "nosuchpackage": "2.0"}) == [
        f"pytest {pytest.__version__}, floor 1.0",
        "nosuchpackage missing, floor 2.0",
    ]
    assert floor.differing({"pytest": pytest.__version__}) == []


def test_no_answer_is_no_audit(monkeypatch, capsys):
    audit = script("audit")
    for answer in (None, [{"name": "jax", "skip_reason": "not found"}]):
        monkeypatch.setattr(audit, "asked", lambda *_, answer=answer: answer)
        assert audit.main("python", sys.prefix) == 0
        assert capsys.readouterr().out.startswith("not audited: ")


def test_vulnerabilities_are_told(monkeypatch, capsys):
    audit = script("audit")
    assert f"pytest=={pytest.__version__}" in audit.installed(sys.prefix)
    known = {"name": "jax", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
    monkeypatch.setattr(audit, "asked", lambda *_: [known])
    assert audit.main("python", sys.prefix) == 1
    assert capsys.readouterr().out.startswith("jax 1: CVE-1, fixed in 2\n1 of ")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def pip(folder: Path, ends: int) -> str:
    """A stand-in for Python whose pip installs two packages."""
    path = folder / "python"
    path.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        echo 'WARNING: noise'
        echo 'Collecting jax>=0.10.2 (from jaxeff)'
        echo '  Downloading jax-0.10.2-py3-none-any.whl (2.5 MB)'
        sleep 0.6
        echo 'Installing collected packages: numpy, jax'
        exit {ends}
        """)
    )
    path.chmod(0o755)
    return str(path)


def test_installing_is_told_by_phases(tmp_path):
    out, err = io.StringIO(), io.StringIO()
    assert script("install").install(pip(tmp_path, 0), ["jax"], out, err) == 0
    assert out.getvalue().splitlines()[:-1] == ["finding packages", "installing 2 packages"]
    assert out.getvalue().splitlines()[-1].startswith("done after ") and err.getvalue() == ""


def test_installing_lives_on_a_terminal(tmp_path):
    out = Terminal()
    assert script("install").install(pip(tmp_path, 0), [], out, io.StringIO()) == 0
    assert "finding packages  1: jax-0.10.2-py3-none-any.whl, 2.5 MB" in out.getvalue()
    assert out.getvalue().count("\n") == 1 and "noise" not in out.getvalue()


def test_a_failed_installation_says_what_pip_said(tmp_path):
    out, err = io.StringIO(), io.StringIO()
    assert script("install").install(pip(tmp_path, 3), [], out, err) == 3
    assert "failed after " in out.getvalue() and "noise" in err.getvalue()


def test_a_run_is_written_for_tensorboard_and_plotted(tmp_path):
    """tensorboardX and matplotlib, as they are."""
    pytest.importorskip("tensorboardX")
    from jaxeff.lab.run_report import write
    from jaxeff.train.loop import fit

    fit(experiment("train.tensorboard=true", "train.steps=2"), tmp_path / "w")
    assert list((tmp_path / "w" / "tensorboard").iterdir())
    assert write(tmp_path / "w").stat().st_size


def test_trees_are_compared_by_chex():
    import chex
    import numpy as np

    chex.assert_trees_all_close({"a": np.ones(2)}, {"a": np.ones(2)})
