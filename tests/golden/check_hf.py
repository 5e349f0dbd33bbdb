"""What jaxeff saved, loaded by Transformers: nothing missing or left over, every weight equal to the bit, the same logits.

python check_hf.py FOLDER        FOLDER/hf/<case>, as Transformers saved it; FOLDER/hf_back/<case>, as jaxeff did
"""

import sys
from pathlib import Path

import torch
import transformers

FOLDER = Path(sys.argv[1])


def load(folder):
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    amiss = {kind: found for kind, found in told.items() if found}
    assert not amiss, f"{folder}: {amiss}"
    return model.eval()


def main(kind):
    """Compares the models in the folders `kind` and `<kind>_back`."""
    cases = sorted(path.name for path in (FOLDER / kind).iterdir())
    assert cases, f"no models in {FOLDER}"
    for case in cases:
        first, second = load(FOLDER / kind / case), load(FOLDER / f"{kind}_back" / case)
        ours = second.state_dict()
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, ours[name]), f"{case}: {name} differs"
        tokens = torch.arange(13)[None] % first.config.vocab_size
        with torch.no_grad():
            a, b = (model(tokens, use_cache=False).logits for model in (first, second))
        assert torch.equal(a, b), f"{case}: logits differ by {(a - b).abs().max()}"
    print(f"{len(cases)} models saved by jaxeff load in transformers {transformers.__version__}, equal to the bit")


if __name__ == "__main__":
    main("hf")
