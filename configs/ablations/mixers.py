"""The sequence mixers of the registry (mha and mqa are settings of gqa) in one Transformer of equal size, on the documentation of
this Python.

    jaxeff ablate configs/ablations/mixers.py --workdir runs/mixers

Hardware: two CPU cores, 26 minutes. Recorded in experiments/mixers/README.md.
"""

from jaxeff.data import PythonDocs, SentencePiece, TextData
from jaxeff.lab.ablation import Ablation, Variant, stages
from jaxeff.mixers import (
    GLA,
    GQA,
    KDA,
    RGLRU,
    RWKV4,
    RWKV6,
    RWKV7,
    DeltaNet,
    GatedDeltaNet,
    GatedDeltaProduct,
    LinearAttention,
    Mamba,
    Mamba2,
    RetNet,
    SlidingWindow,
)
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.norm import RMSNorm
from jaxeff.models import LM, Block, Stage, rwkv7_stages
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim

VOCABULARY, LAYERS = 1024, 4

# Four heads where a mixer has heads, else what it derives from the width, but that values are narrower where two steps a token
# would not leave room for an MLP. Nothing is tuned for any of them.
MIXERS = {
    "gqa": GQA(n_heads=4, n_kv_heads=2),
    "window": SlidingWindow(n_heads=4, n_kv_heads=2, window=64),
    "linear": LinearAttention(n_heads=4),
    "retnet": RetNet(n_heads=4),
    "gla": GLA(n_heads=4),
    "mamba": Mamba(),
    "mamba2": Mamba2(),
    "rglru": RGLRU(n_heads=4),
    "rwkv4": RWKV4(),
    "rwkv6": RWKV6(n_heads=4),
    "deltanet": DeltaNet(n_heads=4),
    "gated_deltanet": GatedDeltaNet(n_heads=4),
    "gated_deltaproduct": GatedDeltaProduct(n_heads=4, value_dim=24),
    "kda": KDA(n_heads=4),
}


def ablation() -> Ablation:
    """Models of 505 thousand parameters; the width of their MLPs makes up for the mixers' sizes."""
    rwkv7 = rwkv7_stages(LAYERS, RWKV7(head_dim=24), MLP(), RMSNorm())
    return Ablation(
        name="mixers",
        description="Sequence mixers in one Transformer of equal size, trained on the documentation of this Python.",
        base=Experiment(
            model=LM(vocab_size=VOCABULARY, d_model=96, stages=(Stage(("gqa",), LAYERS),)),
            data=TextData(PythonDocs(), SentencePiece(vocab_size=VOCABULARY), seq_len=256, batch_size=2),
            optim=Optim("muon", schedule="cosine", warmup=0.1),
            train=Train(steps=400, log_every=1, eval_batches=64),
        ),
        variants=(
            *(stages(name, Block(mixer)) for name, mixer in MIXERS.items()),
            Variant("rwkv7", {"model.stages": rwkv7}),
        ),
        lrs=(0.006, 0.012, 0.024, 0.048),
        seeds=(0, 1, 2),
        sweep_steps=200,
        contexts=(256, 1024),
    )
