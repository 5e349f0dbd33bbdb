"""Two optimizers on a task without text: copying a row of symbols, judged by accuracy.

    jaxeff ablate configs/ablations/copy.py --workdir runs/copy

Hardware: two CPU cores. Time: about 3 minutes.
"""

from jaxeff.data import Copy
from jaxeff.lab.ablation import Ablation, Variant
from jaxeff.mixers import GQA
from jaxeff.models import LM, Block, Stage
from jaxeff.objectives import Causal
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim


def ablation() -> Ablation:
    """One small Transformer, AdamW and Muon."""
    return Ablation(
        name="copy",
        description="Two optimizers teach the same small Transformer to copy a row of random symbols.",
        base=Experiment(
            model=LM(vocab_size=17, d_model=64, stages=(Stage((Block(GQA(n_heads=4)),), 2),)),
            data=Copy(),
            objective=Causal(follow="accuracy"),
            optim=Optim(warmup=0.1),
            train=Train(steps=300, log_every=10),
        ),
        variants=(Variant("adamw", {"optim.name": "adamw"}), Variant("muon", {"optim.name": "muon"})),
        lrs=(0.003, 0.01),
        seeds=(0, 1, 2),
        sweep_steps=150,
        contexts=(12,),
        decode_tokens=8,
    )
