"""Writes bitsandbytes.npz: matrices that bitsandbytes has put into NF4, as a checkpoint holds them, and what it makes of them:

.venv-bench/bin/python tests/golden/make_bitsandbytes.py        after pip install bitsandbytes

`<case>/<inputs>/<tensor>`, and `/plain`. bitsandbytes is not in `make bench-env`: without it the numbers that are kept stand.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 0


def quantized(inputs, nested, dtype):
    """The tensors of a layer [64, inputs]."""
    import bitsandbytes as bnb

    weight = bnb.nn.Params4bit(
        torch.randn(64, inputs, dtype=dtype), requires_grad=False, compress_statistics=nested, quant_type="nf4"
    )
    weight = weight._quantize("cpu")
    tensors = {"": weight.data} | {f".{k}": v for k, v in weight.quant_state.as_dict(packed=True).items()}
    return tensors | {".plain": bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()}


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    if find_spec("bitsandbytes") is None:
        if FOLDER != HERE:
            shutil.copy(HERE / "bitsandbytes.npz", FOLDER)
        return
    torch.manual_seed(SEED)
    found = {
        f"{case}/{inputs}{name}": x.numpy()
        for case, nested, dtype in (("double", True, torch.bfloat16), ("single", False, torch.float32))
        for inputs in (64, 352)
        for name, x in quantized(inputs, nested, dtype).items()
    }
    np.savez_compressed(FOLDER / "bitsandbytes.npz", **found)


if __name__ == "__main__":
    main()
