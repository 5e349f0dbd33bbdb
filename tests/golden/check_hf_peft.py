"""What jaxeff saved of adapters, loaded by PEFT: every tensor equal to the bit, the same logits.

python check_hf_peft.py FOLDER        FOLDER/peft_base/<model>; FOLDER/peft/<case>, as PEFT saved it; FOLDER/peft_back/<case>, as
                                      jaxeff did, and FOLDER/peft_plain/<case>, without the fields that it came with
"""

import os
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # the bases are named, and nobody need look for them
import peft  # noqa: E402  (which reads the line above)
import torch  # noqa: E402
import transformers  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.golden.peft_cases import CASES  # noqa: E402  (found by the line above)

FOLDER = Path(sys.argv[1])


def load(case, kind):
    base = transformers.AutoModelForCausalLM.from_pretrained(
        FOLDER / "peft_base" / CASES[case][0], attn_implementation="eager", dtype=torch.float32
    )
    with warnings.catch_warnings():  # of missing keys
        warnings.filterwarnings("error", ".*missing adapter keys.*")
        return peft.PeftModel.from_pretrained(base, FOLDER / kind / case).eval()


def main():
    for case in CASES:
        first = load(case, "peft")
        theirs = peft.get_peft_model_state_dict(first)
        tokens = torch.arange(11)[None]
        for kind in ("peft_back", "peft_plain"):
            second = load(case, kind)
            ours = peft.get_peft_model_state_dict(second)
            assert theirs.keys() == ours.keys(), f"{case}: {kind} has other tensors"
            for name, tensor in theirs.items():
                assert torch.equal(tensor, ours[name]), f"{case}: {name} of {kind} differs"
            with torch.no_grad():
                a, b = (model(input_ids=tokens).logits for model in (first, second))
            assert torch.equal(a, b), f"{case}: logits of {kind} differ by {(a - b).abs().max()}"
    print(f"{len(CASES)} adapters saved by jaxeff load in peft {peft.__version__}, equal to the bit")


if __name__ == "__main__":
    main()
