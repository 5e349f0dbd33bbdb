"""Logits of RWKV-7 as flash-linear-attention's own class computes them, into hf_rwkv7.npz, which is laid out as make_hf.py has it.

With a folder as argument, each model is saved there too, in hf_fla/<case>. The second argument is the seed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.golden import fla_on_cpu  # noqa: E402, F401  (found by the line above; before all that imports fla)
from tests.golden.hf_cases import FLA  # noqa: E402
from tests.golden.make_hf import main  # noqa: E402

if __name__ == "__main__":
    main(FLA, "hf_fla")
