"""What accelerators can multiply at most, as their makers publish it: FLOPs of dense bfloat16 products a second, of one chip.

TPUs: Google Cloud's documentation of TPU versions. GPUs: NVIDIA's data sheets, the Tensor Core figure without sparsity.
"""

import re

TPUS = {"v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}
GPUS = {
    "A30": 165e12,
    "A100": 312e12,
    "L4": 121e12,
    "L40S": 362e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "B200": 2250e12,
}
LITE = {"v5 lite": "v5e", "v5": "v5p", "v6 lite": "v6e"}  # generations as JAX names them


def peak(device_kind: str) -> float | None:
    """FLOPs a second of a device by the name that JAX has for its kind, "TPU v5 lite" or "NVIDIA A100-SXM4-40GB"; None where no
    peak is known, as of every CPU and of the slices of a GPU (MIG)."""
    maker, _, name = device_kind.partition(" ")
    if maker == "TPU":
        return TPUS.get(LITE.get(name, name))
    words = set(re.split(r"[\s-]", name))
    fitting = [known for known in GPUS if maker == "NVIDIA" and "MIG" not in words and words.issuperset(known.split())]
    return GPUS[max(fitting, key=len)] if fitting else None
