"""How much attention a recurrent model needs: its share of eight layers, with Mamba-2 and with Gated DeltaNet.

    jaxeff ablate configs/ablations/hybrid.py --workdir runs/hybrid

Hardware: two CPU cores, 32 minutes. Recorded in experiments/hybrid/README.md.
"""

from jaxeff.data import PythonDocs, SentencePiece, TextData
from jaxeff.lab.ablation import Ablation, Variant
from jaxeff.mixers import GQA, GatedDeltaNet, Mamba2
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim

VOCABULARY, LAYERS = 1024, 8
ATTENTION = Block(GQA(n_heads=4, n_kv_heads=2))
RECURRENT = {"mamba2": Block(Mamba2()), "gated_deltanet": Block(GatedDeltaNet(n_heads=4))}
EVERY = {"one-half": 2, "one-quarter": 4, "one-eighth": 8}


def hybrid(block: Block, every: int) -> tuple[Stage, ...]:
    """Attention in the last of each `every` layers."""
    return (Stage((*[block] * (every - 1), ATTENTION), LAYERS // every),)


def ablation() -> Ablation:
    """Models of equal size; the width of their MLPs makes up for the mixers' sizes."""
    mixed = {
        f"{name}-{share}": hybrid(block, every) for name, block in RECURRENT.items() for share, every in EVERY.items()
    }
    pure = {f"{name}-alone": (Stage((block,), LAYERS),) for name, block in RECURRENT.items()}
    return Ablation(
        name="hybrid",
        description="The share of attention in eight layers, beside Mamba-2 and beside Gated DeltaNet, at equal size.",
        base=Experiment(
            model=LM(vocab_size=VOCABULARY, d_model=96, stages=(Stage((ATTENTION,), LAYERS),)),
            data=TextData(PythonDocs(), SentencePiece(vocab_size=VOCABULARY), seq_len=256, batch_size=2),
            optim=Optim("muon", schedule="cosine", warmup=0.1),
            train=Train(steps=400, log_every=1, eval_batches=64),
        ),
        variants=(
            Variant("attention", {"model.stages": (Stage((ATTENTION,), LAYERS),)}),
            *(Variant(name, {"model.stages": stages}) for name, stages in sorted((mixed | pure).items())),
        ),
        lrs=(0.006, 0.012, 0.024, 0.048),
        seeds=(0, 1, 2),
        sweep_steps=200,
        contexts=(256, 1024),
    )
