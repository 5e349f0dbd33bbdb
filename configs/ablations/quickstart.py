"""Five sequence mixers of equal size on the documentation of this Python: the default ablation.

    jaxeff ablate configs/ablations/quickstart.py --workdir runs/quickstart

Hardware: two CPU cores. Time: 6 to 8 minutes. JAXEFF_ABLATION=reduced makes it a check of one minute, too short for its
numbers to mean anything: fewer models, seeds, steps, and a corpus cut to 300 kB.
"""

import os

from jaxeff.core.errors import UserError
from jaxeff.data import Data, PythonDocs, SentencePiece
from jaxeff.lab.ablation import Ablation, Variant
from jaxeff.mixers.gqa import MHA, MQA, GQA, SlidingWindow
from jaxeff.mixers.linear_attention import LinearAttention
