"""What is said about an estimate, and which other experiments are tried."""

import dataclasses
import json
import re

import pytest

from jaxeff.cli import main
from jaxeff.core.spec import count
from jaxeff.data import TextData
from jaxeff.mixers import GQA
from jaxeff.models import LM, Block, Stage
from jaxeff.plan import search
from jaxeff.plan.estimate import Estimate, _asked
from jaxeff.plan.page import page
from jaxeff.plan.parts import WAITING
from jaxeff.plan.table import comparison, text
from jaxeff.train.config_file import load
from jaxeff.train.experiment import Experiment, MeshShape
from tests.documented import ROOT

GIB = 2**30
FOUND = Estimate(
    topology="v5e:2x2", chips=4, mesh={"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1}, kind="train", parameters=1_000_000,
    tokens=4096, hbm=16 * GIB, fits=True, memory={"weights": GIB, "temporaries": 3 * GIB}, flops=4 * 0.05 * 100e12, peak=100e12,
    parts={"MLP": 0.06, WAITING: 0.04}, bandwidth=1e12, compiled_in=12.0, unknown={"/x/own.py:3": 2},
    sent=[
        {"kind": "all-gather", "axes": "fsdp", "part": "MLP", "line": "/x/jaxeff/mixers/mlp.py:9", "bytes": GIB, "numbers": (7,),
         "times": 4, "seconds": 0.05, "exposed": 0.04, "asked": False},
    ],
    works=[
        {"part": "MLP", "line": "/x/jaxeff/mixers/mlp.py:9", "operation": "dot_general", "times": 2, "seconds": 0.06, "flops": 3e12,
         "bytes": 1e9},
    ],
    arrays=[{"array": "f32[8]", "part": "<MLP>", "line": "", "bytes": GIB}],
)  # fmt: skip
TOO_LARGE = dataclasses.replace(FOUND, fits=False, memory={"needed": 20 * GIB}, parts={}, sent=[], works=[], arrays=[])


def test_what_is_derived():
    assert FOUND.seconds == pytest.approx(0.1) and FOUND.mfu == pytest.approx(0.5)
    assert FOUND.tokens_per_s == pytest.approx(40960) and FOUND.used == 4 * GIB
    whole = json.loads(json.dumps(FOUND.json()))
    assert whole["seconds"] == pytest.approx(0.1) and whole["mfu"] == pytest.approx(0.5)


def test_the_text_says_all_that_matters():
    said = text(FOUND, steps=36_000, price=1.5, watts=200.0)
    for words in (
        "v5e:2x2, 4 chips (fsdp 4): a training step of 1,000,000 parameters",
        "fits: 4.00 GiB of 16.00 GiB a chip",
        "100.00 ms each, 40,960 tokens/s (10,240 a chip), MFU 50.0%",
        "UNASKED",
        "1 that no sharding rule asks for, 50.00 ms",
        "36,000 steps: 1 h, 4 chip hours, 6 at 1.5 a chip and hour, 0.8 kWh at 200 W a chip",
        "without an estimate, and not in these times: kernels at 2 x /x/own.py:3",
    ):
        assert words in said, said
    row = next(line for line in said.splitlines() if "dot_general" in line)
    assert row.split()[-5:] == ["ms", "30.00", "ms", "flops", "50%"]


def test_what_does_not_fit_is_said_first():
    assert "does NOT fit: needs 20.00 GiB of 16.00 GiB a chip" in text(TOO_LARGE)


def test_the_page_of_one_and_of_several():
    one = page("Plan: <a>", [("a", FOUND)], ["1,000 steps"])
    assert "<title>Plan: &lt;a&gt;</title>" in one and "&lt;MLP&gt;" in one and "1,000 steps" in one and "<svg" in one
    assert one.count("http") == one.count("http://www.w3.org"), "no outside resource"
    two = page("Plan", [("a", FOUND), ("b", TOO_LARGE), ("c", "no such mesh")])
    assert "does not fit" in two and "no such mesh" in two
    lines = comparison([("a", FOUND), ("b", TOO_LARGE), ("c", "no such mesh")]).splitlines()
    assert lines[1].split()[:3] == ["a", "100.00", "ms"] and "does not fit" in lines[2] and "no such mesh" in lines[3]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        (dict(kind="all-gather", axes="fsdp", bytes=2**20, numbers=(500_000,)), True),  # a weight
        (dict(kind="all-gather", axes="fsdp", bytes=2**20, numbers=(500_001,)), False),
        (dict(kind="all-reduce", axes="data+fsdp", bytes=2**20, numbers=(500_000, 8)), True),  # with a norm's
        (dict(kind="all-reduce", axes="fsdp", bytes=100, numbers=(25,)), True),
        (dict(kind="all-to-all", axes="fsdp", bytes=2**20, numbers=(500_000,)), False),
        (dict(kind="all-to-all", axes="fsdp", bytes=2**20, numbers=(9,), part="embedding"), True),
        (dict(kind="all-reduce", axes="tensor", bytes=2**30, numbers=(9,)), True),
        (dict(kind="collective-permute", axes="sequence", bytes=2**30, numbers=(9,)), True),
    ],
)
def test_which_communication_is_asked_for(row, asked):
    assert _asked({"part": "MLP"} | row, {500_000}) == asked


def experiment(**changes) -> Experiment:
    lm = LM(64, 32, (Stage((Block(GQA(n_heads=2)),), 2),))
    return Experiment(lm, TextData(seq_len=32, batch_size=16), **changes)


def test_what_is_tried_where_a_step_does_not_fit():
    tried = dict(search.changes(experiment(mesh=MeshShape(data=4)), chips=4))
    assert list(tried) == [
        "mesh.fsdp=4", "model.remat=dots", "model.remat=narrow", "model.remat=attention", "model.remat=full",
        "model.remat=full train.accumulate=2", "model.remat=full train.accumulate=4",
    ]  # fmt: skip
    last = tried["model.remat=full train.accumulate=4"]
    assert (last.model.remat, last.train.accumulate, last.mesh.data) == ("full", 4, 4)
    assert tried["mesh.fsdp=4"].mesh == MeshShape(fsdp=4)


def test_the_first_change_that_fits_is_taken(monkeypatch):
    def plan(e, topology, kind):
        return FOUND if e.model.remat == "dots" else TOO_LARGE

    monkeypatch.setattr(search, "plan", plan)
    told = []
    found, change, other = search.fitting(experiment(mesh=MeshShape(fsdp=4)), "v5e:2x2", "train", told.append)
    assert (found, change, other) == (TOO_LARGE, "model.remat=dots", FOUND)
    assert told == ["does not fit; trying model.remat=dots"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology", "v5f:2x4"], "no kind of TPU is called 'v5f'"),
        (["--topology", "v5e:2x4,v5e:4x4"], "several topologies are compared by --sweep topology"),
        (["--topology", "v5e:2x4", "--price", "-1"], "expected a number above 0, found '-1'"),
        (["--topology", "v5e:2x4", "--step", "trian"], "invalid choice: 'trian'"),
        ([], "the following arguments are required: --topology"),
        (["--topology", "v5e:2x4", "--set", "model.remat=ful"], "did you mean 'full'"),
    ],
)
def test_odd_arguments_are_one_line(arguments, says, capsys):
    try:
        status = main(["plan", "configs/quickstart.py", *arguments])
    except SystemExit as end:
        status = end.code
    assert status == 2
    error = capsys.readouterr().err
    assert says in error, error


@pytest.mark.parametrize("path", sorted((ROOT / "configs/tpu").glob("*.py")), ids=lambda path: path.stem)
def test_configs_for_tpus_are_of_the_size_that_their_first_line_names(path):
    e = load(path)
    said = re.search(r"([\d.]+) (M|B) parameters", path.read_text().partition("\n")[0])
    size = float(said[1]) * {"M": 1e6, "B": 1e9}[said[2]]
    assert count(e.model.specs()) == pytest.approx(size, rel=0.05)
    assert e.mesh.data * e.mesh.fsdp == 16 and e.data.batch_size % 16 == 0 and e.precision == "bfloat16"
