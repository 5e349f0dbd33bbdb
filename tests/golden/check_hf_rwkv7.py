"""What jaxeff saved as RWKV-7, loaded by flash-linear-attention's own class: see check_hf.py, which this runs for hf_fla/<case>."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.golden import fla_on_cpu  # noqa: E402, F401  (found by the line above; before all that imports fla)
from tests.golden.check_hf import main  # noqa: E402

if __name__ == "__main__":
    main("hf_fla")
