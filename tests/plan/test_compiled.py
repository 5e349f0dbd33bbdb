"""What the compiler for TPUs itself says: it runs on any machine, but is no part of the tests' environment. `make plan` gets it."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxeff.cli import main
from jaxeff.core.errors import UserError
from jaxeff.core.sharding import make_mesh
from jaxeff.data import TextData
from jaxeff.mixers import GQA, MLP
from jaxeff.models import LM, Block, Stage
from jaxeff.plan.chips import CHIPS, devices_of
from jaxeff.plan.estimate import plan
from jaxeff.plan.hlo import Module
from jaxeff.plan.parts import PARTS
from jaxeff.plan.program import DoesNotFit, Program, compile
from jaxeff.train.experiment import Experiment, MeshShape

pytestmark = [
    pytest.mark.shipped,  # other options are for CPUs
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: make plan"),
]

ONE = "v5e:2x2"


def on_one_chip(f, *shapes, dtype=jnp.bfloat16):
    """The trace of f on arrays of these shapes, on one chip of v5e."""
    place = NamedSharding(make_mesh(devices=devices_of(ONE)[:1]), PartitionSpec())
    return jax.jit(f).trace(*(jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape in shapes))


@pytest.mark.parametrize("turns", [1, 10])
def test_cycles_of_products_are_within_a_tenth_of_ideal(turns):
    n, chip = 4096, CHIPS["v5e"]
    w = (turns, n, n)
    f = (lambda x, w: x @ w[0]) if turns == 1 else (lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0])
    module = Module(on_one_chip(f, (n, n), w).lower(lowering_platforms=("tpu",)).compile().as_text())
    flops = sum(times * module.flops(i) for i, times in module.walk())
    products = sum(times * i.cycles for i, times in module.walk() if module.multiplies(i))
    assert flops == turns * 2 * n**3
    assert products / chip.clock == pytest.approx(flops / chip.flops, rel=0.1)


def test_a_program_that_is_a_hundredth_too_large_is_refused_and_one_that_is_a_hundredth_smaller_fits():
    def sized(share: float) -> Program:
        rows = int(share * there / 4 / 2 / 1024)  # an argument and a result
        return Program(on_one_chip(lambda x: x + 1, (rows, 1024), dtype=jnp.float32), {}, 1, 1.0)

    there = CHIPS["v5e"].hbm
    with pytest.raises(DoesNotFit) as told:
        compile(sized(2.0))
    there = told.value.there  # what the compiler leaves to programs
    with pytest.raises(DoesNotFit):
        compile(sized(1.01))
    used = compile(sized(0.99)).memory
    assert 0.985 * there < sum(used.values()) < 0.995 * there


def small(**changes) -> Experiment:
    block = Block(GQA(n_heads=2, n_kv_heads=2, head_dim=128), MLP(d_hidden=512))
    data = TextData(seq_len=256, batch_size=8)
    return Experiment(LM(1024, 256, (Stage((block,), 2),)), data, precision="bfloat16", **changes)


def test_a_small_model_fits_and_sends_only_what_is_asked_for():
    found = plan(small(mesh=MeshShape(fsdp=8)), "v5e:2x4")
    assert found.fits and not found.unknown and 0 < found.mfu < 1
    assert set(found.parts) <= set(PARTS) and {"attention", "MLP", "norm", "head and loss", "optimizer"} <= set(
        found.parts
    )
    assert not [row for row in found.sent if not row["asked"]]
    assert {"all-gather", "reduce-scatter"} <= {row["kind"] for row in found.sent}
    assert found.memory["weights"] == found.parameters // 8 * 4


def test_slices_send_each_other_nothing_but_sums_of_gradients():
    found = plan(small(mesh=MeshShape(data=2, fsdp=4, dcn_data=2)), "2xv5e:2x2")
    between = [row for row in found.sent if row["axes"] == "data"]
    assert found.chips == 8 and between and {row["kind"] for row in between} == {"all-reduce"}
    # Each chip's quarter of the gradients, in 16 or 32 bits, crosses the network once.
    sent = sum(row["bytes"] * row["times"] for row in between)
    assert found.parameters / 4 * 2 <= sent <= 1.1 * found.parameters / 4 * 4
    assert all(row["seconds"] == pytest.approx(row["bytes"] * row["times"] / CHIPS["v5e"].dcn) for row in between)


def test_a_mesh_that_does_not_know_of_slices_is_refused():
    with pytest.raises(UserError, match="must be the number of slices, and the devices are in 2"):
        plan(small(mesh=MeshShape(fsdp=8)), "2xv5e:2x2")


def test_the_command_writes_what_it_found(tmp_path, capsys):
    (tmp_path / "config.py").write_text("from tests.plan.test_compiled import small\nconfig = small\n")
    arguments = [
        "plan",
        str(tmp_path / "config.py"),
        "--topology",
        "v5e:2x4",
        "--step",
        "decode",
        "--set",
        "mesh.fsdp=8",
    ]
    status = main([*arguments, "--json", str(tmp_path / "plan.json"), "--html", str(tmp_path / "plan.html")])
    assert status in (0, None)
    (found,) = json.loads((tmp_path / "plan.json").read_text())
    assert found["fits"] and found["seconds"] == pytest.approx(sum(found["parts"].values()))
    said, page = capsys.readouterr().out, (tmp_path / "plan.html").read_text()
    assert "a decoded token" in said and "time by part" in said and "Time by part" in page


def test_axes_of_a_mesh_that_are_no_axes_of_the_grid():
    mesh = make_mesh(data=2, fsdp=2, tensor=2, devices=devices_of("v5p:4x2x1"))
    assert mesh.size == 8


def test_kinds_whose_programs_jax_cannot_read():
    """Transfers of several arrays at once, of v5p: the compiler's own text of them is read."""
    found = plan(small(mesh=MeshShape(fsdp=4)), "v5p:2x2x1")
    assert found.fits and found.seconds > 0
