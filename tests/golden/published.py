"""What published code computed: the cases of the files beside this one, or of those in the folder $JAXEFF_GOLDEN, which `make
parity` has just made. Where $JAXEFF_PARITY names a file, each case adds its errors to it as a line of JSON."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.core.tree import paths
from jaxeff.mixers.base import Ctx
from tests.closeness import assert_close, relative_rms

FOLDER = Path(os.environ.get("JAXEFF_GOLDEN") or Path(__file__).parent)
OUTPUT = 1e-5  # relative RMS of outputs, float32 against float32
GRADIENT = 1e-4  # of every gradient


def cases(name):
    """case -> {"sizes", "x", "y", "cotangent", "dx", "param": {path: array}, "grad": {path: array}, "state", ...}."""
    found = {}
    with np.load(FOLDER / f"{name}.npz") as file:
        for key in file.files:
            if key == "versions":
                continue
            case, kind, *path = key.split("/", 2)
            here = found.setdefault(case, {"param": {}, "grad": {}})
            if path:
                here.setdefault(kind, {})[path[0]] = file[key]
            else:
                here[kind] = json.loads(str(file[key])) if kind == "sizes" else file[key]
    return found


def agree(mixer, case, convert, ctx=Ctx(), state=None):  # noqa: B008  immutable
    """y, dx, every parameter's gradient and the state after x of a mixer are those of the published layer.

    convert: the layer's arrays by path -> our tree; it only cuts and turns, so it serves gradients too. state: our state -> the
    published one, where there is one.
    """
    params = jax.tree.map(jnp.asarray, convert(case["param"]))

    @jax.jit
    def run(params, x_BTD):
        y_BTD, pullback = jax.vjp(lambda p, x: mixer.apply(p, x, ctx=ctx).y, params, x_BTD)
        empty = None if state is None else mixer.init_state(*x_BTD.shape[:2], x_BTD.dtype)
        after = mixer.apply(params, x_BTD, empty, ctx=ctx).state
        return y_BTD, pullback(jnp.asarray(case["cotangent"])), after

    y_BTD, (grads, dx_BTD), after = run(params, jnp.asarray(case["x"]))
    expected = paths(convert(case["grad"])) | {"x": case["dx"]}
    errors = [relative_rms(g, expected[path]) for path, g in (paths(grads) | {"x": dx_BTD}).items()]
    _record(type(mixer).__name__, relative_rms(y_BTD, case["y"]), max(errors))
    assert_close(y_BTD, case["y"], OUTPUT, "y")
    assert_close(dx_BTD, case["dx"], GRADIENT, "dx")
    assert_close(grads, convert(case["grad"]), GRADIENT, "gradient")
    assert (state is None) == ("state" not in case)
    if state is not None:
        assert_close(state(after), case["state"], OUTPUT, "state")


def _record(mixer: str, output: float, gradient: float) -> None:
    if "JAXEFF_PARITY" in os.environ:
        with open(os.environ["JAXEFF_PARITY"], "a") as file:  # one short line: workers do not mix theirs
            file.write(json.dumps({"mixer": mixer, "output": output, "gradient": gradient}) + "\n")
