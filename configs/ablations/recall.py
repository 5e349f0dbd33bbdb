"""How much of what was read a state of fixed size can tell again: values of sixteen keys, against the size of the state.

    jaxeff ablate configs/ablations/recall.py --workdir runs/recall

Hardware: two CPU cores. Not run yet.
"""

from jaxeff.data import Recall
from jaxeff.lab.ablation import Ablation, stages
from jaxeff.mixers import GLA, GQA, DeltaNet, GatedDeltaNet, Mamba2
from jaxeff.models import LM, Block, Stage
from jaxeff.objectives import Causal
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim

# The number behind a name is the width of a key, by which the state grows: one head, values of 32 channels.
MIXERS = {
    "gqa": GQA(n_heads=2),
    **{f"gla-{n}": GLA(n_heads=1, key_dim=n, value_dim=32) for n in (4, 16, 64)},
    **{f"mamba2-{n}": Mamba2(expand=1, head_dim=32, d_state=n) for n in (4, 16, 64)},
    **{f"deltanet-{n}": DeltaNet(n_heads=1, head_dim=n, value_dim=32) for n in (4, 16, 64)},
    "gated_deltanet-64": GatedDeltaNet(n_heads=1, head_dim=64, value_dim=32),
}


def ablation() -> Ablation:
    """Two layers of equal size; what is compared with the accuracy is the column of states."""
    return Ablation(
        name="recall",
        description="Values of 16 keys, asked for once each in another order, by mixers with states of several sizes.",
        base=Experiment(
            model=LM(vocab_size=128, d_model=64, stages=(Stage(("gqa",), 2),)),
            data=Recall(n_keys=64, n_values=64, n_pairs=16, n_rows=32768, batch_size=32),
            objective=Causal(follow="accuracy"),
            optim=Optim(warmup=0.1),
            train=Train(steps=1500, log_every=10),
        ),
        variants=tuple(stages(name, Block(mixer)) for name, mixer in MIXERS.items()),
        lrs=(2e-3, 5e-3),
        seeds=(0, 1, 2),
        sweep_steps=750,
        contexts=(64,),
        decode_tokens=8,
    )
