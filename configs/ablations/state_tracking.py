"""Which mixers can follow a state: the parity of a row of bits, told on rows twice as long as those learned from.

    jaxeff ablate configs/ablations/state_tracking.py --workdir runs/state_tracking

Hardware: one CPU core, 17 minutes. Recorded in experiments/state_tracking/README.md.
"""

from jaxeff.data import StateTracking
from jaxeff.lab.ablation import Ablation, Variant, stages
from jaxeff.mixers import GLA, GQA, MLP, RWKV7, DeltaNet, Mamba2, RMSNorm
from jaxeff.models import LM, Block, Stage, rwkv7_stages
from jaxeff.objectives import Causal
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim

LAYERS, WIDTH = 2, 64
MIXERS = {
    "gqa": GQA(n_heads=4),
    "mamba2": Mamba2(head_dim=32, d_state=32),
    "gla": GLA(n_heads=4),
    "deltanet": DeltaNet(n_heads=4),
    "deltanet-negative": DeltaNet(n_heads=4, negative=True),
}


def ablation() -> Ablation:
    """Two layers; 8,192 rows of 32 bits, each seen four times."""
    rwkv7 = {
        name: rwkv7_stages(LAYERS, RWKV7(head_dim=16, negative=negative), MLP(), RMSNorm())
        for name, negative in (("rwkv7", False), ("rwkv7-negative", True))
    }
    return Ablation(
        name="state-tracking",
        description="Parity of the bits so far, learned on rows of 32 bits, told on bits 33 to 64 of longer rows.",
        base=Experiment(
            model=LM(vocab_size=2, d_model=WIDTH, stages=(Stage(("gqa",), LAYERS),)),
            data=StateTracking(length=32, eval_length=64, n_rows=8192, batch_size=32),
            objective=Causal(follow="accuracy"),
            optim=Optim(warmup=0.1),
            train=Train(steps=1000, log_every=10),
        ),
        variants=(
            *(stages(name, Block(mixer)) for name, mixer in MIXERS.items()),
            *(Variant(name, {"model.stages": stages}) for name, stages in rwkv7.items()),
        ),
        lrs=(1e-3, 3e-3),
        seeds=(0, 1, 2),
        sweep_steps=500,
        contexts=(32,),
        decode_tokens=8,
    )
