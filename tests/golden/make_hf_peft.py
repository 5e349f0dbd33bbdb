"""Logits of public models with adapters as PEFT computes them, into hf_peft.npz: `<case>/config`, what PEFT writes as
adapter_config.json; `/tensors`, names, those that they were drawn as, and shapes; `/x` tokens and `/y` their logits, float32;
`<model>/config`, `/tensors`: of the bases.

All numbers are those of hf_cases.py. With a folder as argument, bases are saved there in peft_base/<model> and adapters in
peft/<case>. The second argument is the seed.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.golden.hf_cases import drawn  # noqa: E402  (found by the line above)
from tests.golden.make_hf import drawn_as  # noqa: E402
from tests.golden.peft_cases import CASES, LEFT, MODELS  # noqa: E402

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 0


def base(name):
    """A model with the drawn weights."""
    model_type, fields = MODELS[name]
    config = transformers.AutoConfig.for_model(model_type, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(drawn(path, tuple(parameter.shape), SEED)))
    return model


def adapted(case):
    """PEFT's model with the drawn adapter."""
    name, kind, fields = CASES[case]
    model = peft.get_peft_model(base(name), getattr(peft, kind)(task_type="CAUSAL_LM", **fields)).eval()
    left = LEFT.get(case, {})
    with torch.no_grad():
        if not model.active_peft_config.is_prompt_learning:
            own = model.state_dict()
            for path in peft.get_peft_model_state_dict(model):
                fill(own[called(path, own)], path, left)
        else:
            weight = model.prompt_encoder["default"].embedding.weight
            weight.copy_(torch.from_numpy(drawn("prompt_embeddings", tuple(weight.shape), SEED)))
    if left:
        model.active_peft_config.rank_pattern = {f"{layer}.lora_E.default": kept for layer, kept in left.items()}
    return model


def called(path, own):
    """The name that a tensor of a file has in the model."""
    head, _, end = path.rpartition(".")
    names = (f"{path}.default", f"{head}.default.{end}", f"{path}.default.weight")
    return next(name for name in names if name in own)


def fill(parameter, path, left):
    """Draws a tensor in the shape that it has in the file; triplets that are not left are zero."""
    layer, _, end = path.removeprefix("base_model.model.").rpartition(".")
    kept = np.array(left.get(layer, [True] * 4))
    place = () if layer not in left else (slice(None), kept) if end == "lora_B" else (kept,)
    values = np.zeros(tuple(parameter.shape), np.float32)
    values[place] = drawn(path, values[place].shape, SEED)
    parameter.copy_(torch.from_numpy(values))


def main():
    live, arrays = len(sys.argv) > 1, {}
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = FOLDER if live else Path(elsewhere)
        for name in MODELS:
            model = base(name)
            model.save_pretrained(folder / "peft_base" / name)
            parameters = dict(model.named_parameters())
            arrays |= kept(name, folder / "peft_base" / name, "config.json", "model.safetensors", parameters)
        for case, (name, _, _) in CASES.items():
            model, vocabulary = adapted(case), MODELS[name][1]["vocab_size"]
            tokens = np.random.default_rng(SEED).integers(0, vocabulary, (2, 11))
            with torch.no_grad():
                logits = model(input_ids=torch.from_numpy(tokens)).logits[:, -tokens.shape[1] :]
            model.save_pretrained(folder / "peft" / case)
            arrays |= kept(case, folder / "peft" / case, "adapter_config.json", "adapter_model.safetensors")
            arrays |= {f"{case}/x": tokens.astype(np.int32), f"{case}/y": logits.numpy()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    FOLDER.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FOLDER / "hf_peft.npz", versions=np.array(json.dumps(versions)), **arrays)


def kept(name, folder, config, tensors, parameters=None):
    """What is kept of a folder."""
    found = load_file(folder / tensors)
    found = json.dumps(drawn_as(found, found if parameters is None else parameters))
    return {f"{name}/config": np.array((folder / config).read_text()), f"{name}/tensors": np.array(found)}


if __name__ == "__main__":
    main()
