"""For makers, which run in .venv-bench: a layer of published code, its outputs and its gradients as arrays to keep.

Each maker writes one file: `<case>/x`, `/y`; `/cotangent` r, of y, and `/dx`, `/param/<path>`, `/grad/<path>` of sum(r y);
`/state`, that of decoding after x, where there is one; and `/sizes`, a JSON object of what the layer was made with. A folder as
the first argument writes there, a second is the seed.
"""

import importlib.util
import json
import sys
import sysconfig
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 0
GENERATOR = torch.Generator().manual_seed(SEED)


def naive(op):
    """fla/ops/<op>/naive.py as a module; the package around it asks for kernels."""
    path = Path(sysconfig.get_paths()["purelib"]) / "fla/ops" / op / "naive.py"
    spec = importlib.util.spec_from_file_location(f"naive_{op}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def draw(*shape, std=1.0):
    """Normal numbers of the one generator."""
    return torch.randn(shape, generator=GENERATOR) * std


def disturb(layer, std=0.1):
    """Adds noise to every parameter, so that none is one, zero or equal to its neighbour."""
    for parameter in layer.parameters():
        parameter.data += draw(*parameter.shape, std=std)


def case(name, layer, x, run=None, state=None, **sizes):
    """The arrays of one layer. run: x -> y where the layer is not called with x alone. state: x -> the state after it, where the
    layer does not keep it in its attribute `state`."""
    x = x.clone().requires_grad_(True)
    y = (run or layer)(x)
    r = draw(*y.shape)
    torch.sum(y * r).backward()
    found = {"x": x, "y": y, "cotangent": r, "dx": x.grad}
    found |= {f"param/{path.replace('.', '/')}": p for path, p in layer.named_parameters()}
    found |= {f"grad/{path.replace('.', '/')}": p.grad for path, p in layer.named_parameters() if p.grad is not None}
    with torch.no_grad():
        after = state(x) if state else getattr(layer, "state", None)
    found |= {} if after is None else {"state": after}
    arrays = {f"{name}/{key}": value.detach().numpy() for key, value in found.items()}
    return arrays | {f"{name}/sizes": np.array(json.dumps(sizes))}


def cached(mixer, config):
    """x -> the recurrent state that a layer of transformers leaves in its cache."""

    def state(x):
        cache = transformers.DynamicCache(config=config)
        mixer(x, cache)
        return cache.get_recurrent_state(0)

    return state


def write(name, *cases):
    """`<name>.npz` with all cases."""
    arrays = {key: value for found in cases for key, value in found.items()}
    arrays["versions"] = np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size} bytes")
