"""Losses of a tiny model on meshes of up to eight virtual devices, as JSON: {mesh: [loss, ...]}. test_meshes.py runs it in a
process of its own, as the number of devices is fixed when JAX starts."""

import json
import os
import sys

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

from jaxeff.mixers import GQA, MLP, RetNet  # noqa: E402
from jaxeff.models import LM, Block, Stage  # noqa: E402
from jaxeff.train.step import make_step, start  # noqa: E402
from tests.shipped import compile_as  # noqa: E402
from tests.train.tiny import experiment, losses_from, without  # noqa: E402

STEPS = 10


def tiny(mesh: str):
    # Adam divides by sizes of gradients: a large rate would make of rounding in small ones what ten steps add up.
    e = experiment("data.seq_len=16", "data.batch_size=8", "optim.lr=1e-3", *(f"mesh.{axis}" for axis in mesh.split()))
    blocks = Block(GQA(n_heads=4, n_kv_heads=2), MLP(d_hidden=16)), Block(RetNet(n_heads=2), MLP(d_hidden=16))
    return without(e, model=LM(vocab_size=e.model.vocab_size, d_model=16, stages=(Stage(blocks, 1),)))


def main(meshes: list[str]):
    compile_as(shipped=False)
    alone = tiny("")
    begun = start(alone, make_step(alone))
    print(json.dumps({mesh: losses_from(begun, tiny(mesh), STEPS) for mesh in meshes}))


if __name__ == "__main__":
    main(sys.argv[1:])
