"""Seven sequence mixers of equal size on the documentation of this Python: the default ablation.

    jaxeff ablate configs/ablations/quickstart.py --workdir runs/quickstart

Hardware: two CPU cores. Time: 10 minutes. Expected: 2.2 to 2.8 bits per byte on the test split, depending on the Python version;
the kinds of attention close together, linear attention (no positions, no convolution, no gate) 0.1 or more behind, Mamba-2 and
RWKV-7 0.2 or more ahead.
JAXEFF_ABLATION=reduced makes it a check of less than a minute, whose numbers mean nothing: three smaller models, one seed fewer,
a few steps each, and 300 kB of the text.
"""

import os

from jaxeff.core.errors import UserError
from jaxeff.data import PythonDocs, SentencePiece, TextData
from jaxeff.lab.ablation import Ablation, Variant, stages
from jaxeff.mixers import GQA, MHA, MLP, MQA, RWKV7, LinearAttention, Mamba2, RMSNorm, SlidingWindow
from jaxeff.models import LM, Block, Stage, rwkv7_stages
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim

VOCABULARY = 1024


def ablation() -> Ablation:
    """The whole, or the reduced form where JAXEFF_ABLATION=reduced."""
    size = os.environ.get("JAXEFF_ABLATION", "full")
    if size not in ("full", "reduced"):
        raise UserError(f"JAXEFF_ABLATION must be full or reduced, found {size!r}")
    return reduced() if size == "reduced" else full()


def full() -> Ablation:
    """Seven models of 540 thousand parameters, trained by Muon: after so few steps AdamW is 0.4 bits per byte behind."""
    mixers = {
        "mha": MHA(n_heads=4),
        "gqa": GQA(n_heads=4, n_kv_heads=2),
        "mqa": MQA(n_heads=4),
        "window": SlidingWindow(n_heads=4, n_kv_heads="all", window=64),
        "linear": LinearAttention(n_heads=4),
        "mamba2": Mamba2(),
    }
    rwkv7 = rwkv7_stages(4, RWKV7(head_dim=24), MLP(), RMSNorm())
    return Ablation(
        name="quickstart",
        description="Seven sequence mixers in one Transformer of equal size, trained on the documentation of this Python.",
        base=Experiment(
            model=LM(vocab_size=VOCABULARY, d_model=96, stages=(Stage(("gqa",), 4),)),
            data=TextData(PythonDocs(), SentencePiece(vocab_size=VOCABULARY), seq_len=256, batch_size=2),
            optim=Optim("muon", schedule="cosine", warmup=0.1),
            train=Train(steps=400, log_every=1, eval_batches=64),
        ),
        variants=(
            *(stages(name, Block(mixer)) for name, mixer in mixers.items()),
            Variant("rwkv7", {"model.stages": rwkv7}),
        ),
        lrs=(0.006, 0.012, 0.024),
        seeds=(0, 1, 2),
        sweep_steps=200,
        contexts=(256, 1024),
    )


def reduced() -> Ablation:
    """The same steps from corpus to report, small enough to check a change with."""
    mixers = {"mha": MHA(n_heads=2), "mqa": MQA(n_heads=2), "linear": LinearAttention(n_heads=2)}
    return Ablation(
        name="quickstart-reduced",
        description="A check that everything works: these runs are too short for their numbers to mean anything.",
        base=Experiment(
            model=LM(vocab_size=512, d_model=64, stages=(Stage(("gqa",), 2),)),
            data=TextData(PythonDocs(), SentencePiece(vocab_size=512), seq_len=128, batch_size=4, max_bytes=300_000),
            optim=Optim("muon", schedule="cosine", warmup=0.1),
            train=Train(steps=20, log_every=1),
        ),
        variants=tuple(stages(name, Block(mixer)) for name, mixer in mixers.items()),
        lrs=(0.01, 0.02),
        seeds=(0, 1),
        sweep_steps=8,
        contexts=(64, 256),
        decode_tokens=8,
        timing_rounds=2,
        environment="JAXEFF_ABLATION=reduced",
    )
