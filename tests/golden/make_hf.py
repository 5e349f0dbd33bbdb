"""Logits of public models as Transformers computes them, into hf_<model_type>.npz: `<case>/config`, what it
writes as config.json; `/shapes`, of its tensors by name; `/x` tokens and `/y` their logits, float32.

The weights are those of hf_cases.py, so that no file has to hold them. With a folder as argument, each model is saved there too,
in hf/<case>, as Transformers saves it. The second argument is the seed.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.golden.hf_cases import CASES, drawn  # noqa: E402  (found by the line above)

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 0


def made(model_type, fields):
    """A model with the drawn weights."""
    config = transformers.AutoConfig.for_model(model_type, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(drawn(name, tuple(parameter.shape), SEED)))
    return model


def main():
    arrays = {model_type: {} for model_type, _ in CASES.values()}
    for case, (model_type, fields) in CASES.items():
        model = made(model_type, fields)
        tokens = np.random.default_rng(SEED).integers(0, fields["vocab_size"], (2, 13))
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens), use_cache=False).logits
        folder = FOLDER / "hf" / case
        if len(sys.argv) > 1:
            model.save_pretrained(folder)
        shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
        config = model.config.to_dict() | {"architectures": [type(model).__name__]}
        arrays[model_type] |= {
            f"{case}/config": np.array(json.dumps(config)),
            f"{case}/shapes": np.array(json.dumps(shapes)),
            f"{case}/x": tokens.astype(np.int32),
            f"{case}/y": logits.numpy(),
        }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for model_type, found in arrays.items():
        np.savez_compressed(FOLDER / f"hf_{model_type}.npz", versions=np.array(json.dumps(versions)), **found)


if __name__ == "__main__":
    main()
