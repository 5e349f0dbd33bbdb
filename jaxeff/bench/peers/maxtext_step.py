"""A training step of MaxText, compiled ahead of time for a TPU that is not there.

Started by `jaxeff bench maxtext` with the Python of `.venv-maxtext`. One JSON object a line on stdin, one answer a line on stdout:
{"do": "compile", "options": {MaxText's own}, "text": "FILE"} writes the optimised module to FILE.
"""

import json
import os
import sys
import time

os.environ.setdefault("DECOUPLE_GCLOUD", "TRUE")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Whatever libraries print, also while they are imported, goes to stderr: stdout carries answers alone.
CHANNEL = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import jax  # noqa: E402  (after the environment it reads)
from flax.linen import partitioning  # noqa: E402
from maxtext.configs import pyconfig  # noqa: E402
from maxtext.trainers.pre_train import train, train_compile  # noqa: E402
from maxtext.utils import maxtext_utils, sharding  # noqa: E402


def step_for(config, mesh):
    """The compiled step, made as `train_compile.main` does."""
    args, kwargs, state, _, model = train_compile.get_shaped_inputs(mesh, config)
    params, state = sharding.maybe_update_params_sharding_with_opt(config, state)
    laid = sharding.build_zero1_input_state_mesh_shardings(config, state, params)
    data = sharding.get_input_data_sharding(config, mesh)
    step = maxtext_utils.get_functional_train_with_signature(train.train_step, data, laid, model, config, params)
    function, *how = step
    rules = partitioning.axis_rules(config.logical_axis_rules)
    return train_compile.jit_and_compile(function, args, kwargs, mesh, *how, config, rules)


def compiled(options, text):
    """Compiles, writes the module to the file `text`. Returns bytes of one chip and the mesh."""
    base = os.path.join(os.path.dirname(pyconfig.__file__), "base.yml")
    config = pyconfig.initialize(["", base, *(f"{name}={value}" for name, value in options.items())])
    mesh = train_compile.get_topology_mesh(config)
    start = time.perf_counter()
    try:
        made = step_for(config, mesh)
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error)[:2000]}
    found = made.memory_analysis()
    with open(text, "w") as file:
        file.write(made.as_text())
    return {
        "axes": dict(mesh.shape),
        "devices": [device.id for device in mesh.devices.flat],
        "memory": {
            "arguments": found.argument_size_in_bytes,
            "temporaries": found.temp_size_in_bytes,
            "results": max(0, found.output_size_in_bytes - found.alias_size_in_bytes),
            "program": found.generated_code_size_in_bytes,
        },
        "seconds": time.perf_counter() - start,
    }


def main():
    for line in sys.stdin:
        request = json.loads(line)
        if request.pop("do") == "compile":
            CHANNEL.write(json.dumps(compiled(**request)) + "\n")
            CHANNEL.flush()


if __name__ == "__main__":
    main()
