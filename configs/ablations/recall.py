"""How much of what was read a state of fixed size can tell again: the values of eight keys, against the size of the state.

    jaxeff ablate configs/ablations/recall.py --workdir runs/recall

Hardware: one CPU core, 22 minutes. Recorded in experiments/recall/README.md.
"""

from jaxeff.data import Recall
from jaxeff.lab.ablation import Ablation, stages
from jaxeff.mixers import GQA, DeltaNet, Mamba2
from jaxeff.models import LM, Block, Stage
from jaxeff.objectives import Causal
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim

# The number behind a name is the width of a key, by which the state grows: two heads of 32 values for Mamba-2, one for DeltaNet.
ATTENTION = Block(GQA(n_heads=2))
MAMBA2 = {n: Block(Mamba2(expand=1, head_dim=32, d_state=n)) for n in (4, 16, 64)}
DELTANET = {n: Block(DeltaNet(n_heads=1, head_dim=n, value_dim=32)) for n in (4, 16, 64)}


def ablation() -> Ablation:
    """Two layers of equal size; what is compared with the accuracy is the column of states."""
    return Ablation(
        name="recall",
        description="Values of 8 keys, asked for once each in another order, by mixers with states of several sizes.",
        base=Experiment(
            model=LM(vocab_size=64, d_model=64, stages=(Stage((ATTENTION, ATTENTION)),)),
            data=Recall(n_keys=32, n_values=32, n_pairs=8, n_rows=65536, batch_size=32),
            objective=Causal(follow="accuracy"),
            optim=Optim("muon", warmup=0.1),
            train=Train(steps=1500, log_every=10),
        ),
        variants=(
            stages("gqa", ATTENTION, ATTENTION),
            *(stages(f"mamba2-{n}", block, block) for n, block in MAMBA2.items()),
            *(stages(f"deltanet-{n}", block, block) for n, block in DELTANET.items()),
            stages("mamba2-4-gqa", MAMBA2[4], ATTENTION),
        ),
        lrs=(5e-3, 1e-2),
        seeds=(0, 1, 2),
        sweep_steps=750,
        contexts=(32,),
        decode_tokens=8,
    )
