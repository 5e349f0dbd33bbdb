"""Logits of public models as Transformers computes them, into hf_<model_type>.npz: `<case>/config`, what it
writes as config.json; `/tensors`, their
names, those that they were drawn as, and shapes; `/x` tokens and `/y` their logits, float32.

The weights are those of hf_cases.py, so that no file has to hold them. With a folder as argument, each model is saved there too,
in hf/<case>, as Transformers saves it. The second argument is the seed.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.golden.hf_cases import CASES, FLA, drawn  # noqa: E402  (found by the line above)

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


def drawn_as(tensors, parameters):
    """name in the file -> (name of the parameter that it was drawn as, shape): a few are called otherwise in a file."""
    renamed = iter([name for name in parameters if name not in tensors])
    return {name: (name if name in parameters else next(renamed), list(x.shape)) for name, x in tensors.items()}


def main(cases, kind):
    """Makes the files of some cases; the models go to the folder `kind`."""
    arrays = {model_type: {} for model_type, _ in cases.values()}
    for case, (model_type, fields) in cases.items():
        model = made(model_type, fields)
        tokens = np.random.default_rng(SEED).integers(0, fields["vocab_size"], (2, 13))
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens), use_cache=False).logits
        with tempfile.TemporaryDirectory() as elsewhere:
            folder = FOLDER / kind / case if len(sys.argv) > 1 else Path(elsewhere)
            model.save_pretrained(folder)
            config, tensors = (folder / "config.json").read_text(), load_file(folder / "model.safetensors")
        arrays[model_type] |= {
            f"{case}/config": np.array(config),
            f"{case}/tensors": np.array(json.dumps(drawn_as(tensors, dict(model.named_parameters())))),
            f"{case}/x": tokens.astype(np.int32),
            f"{case}/y": logits.numpy(),
        }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for model_type, found in arrays.items():
        np.savez_compressed(FOLDER / f"hf_{model_type}.npz", versions=np.array(json.dumps(versions)), **found)


if __name__ == "__main__":
    main({case: found for case, found in CASES.items() if case not in FLA}, "hf")
