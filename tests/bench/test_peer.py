"""The pipe to a peer, with a stand-in program: the real ones need torch."""

import sys

import pytest

from jaxeff.bench import peer
from jaxeff.core.errors import UserError

ECHO = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "fail":
        sys.exit("no such thing")
    print(json.dumps({"heard": request}), flush=True)
"""


@pytest.fixture
def echo(tmp_path, monkeypatch):
    program = tmp_path / "echo.py"
    program.write_text(ECHO)
    monkeypatch.setitem(peer.PROGRAMS, "echo", program)


def test_requests_are_answered_in_turn(echo):
    with peer.Peer("echo", sys.executable) as other:
        assert other.ask(do="step", n=1) == {"heard": {"do": "step", "n": 1}}
        assert other.ask(do="step", n=2)["heard"]["n"] == 2
    assert other.process.returncode == 0


def test_a_peer_that_ends_says_why(echo):
    with peer.Peer("echo", sys.executable) as other, pytest.raises(UserError, match="no such thing"):
        other.ask(do="fail")


def test_a_missing_environment_names_the_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXEFF_PEER_PYTHON", raising=False)
    with pytest.raises(UserError, match="make bench-env"):
        peer.peer_python()
    monkeypatch.setenv("JAXEFF_PEER_PYTHON", sys.executable)
    assert peer.peer_python() == sys.executable
    with pytest.raises(UserError, match="nowhere"):
        peer.peer_python("nowhere/python")
