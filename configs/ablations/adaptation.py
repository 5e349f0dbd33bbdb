"""Adapting a small model of prose to code: all weights or few, and what is forgotten of the prose.

    jaxeff ablate configs/ablations/adaptation.py --workdir runs/adaptation

Hardware: two CPU cores, 33 minutes. Recorded in experiments/adaptation/README.md.
"""

from jaxeff.data import PythonCode, PythonDocs, SentencePiece, TextData
from jaxeff.lab.ablation import Ablation, Variant
from jaxeff.mixers import GQA, MLP, Mamba2
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim
from jaxeff.transforms import IA3, Adapter, DoRA, LoRA, QLoRA, StateTuning

VOCABULARY, WIDTH, LAYERS = 1024, 96, 4
MIXERS = {"gqa": GQA(n_heads=4, n_kv_heads=2, biases=("q", "k", "v", "o")), "mamba2": Mamba2()}
MODELS = {
    name: LM(VOCABULARY, WIDTH, (Stage((Block(mixer, MLP(biases=("up", "gate", "down"))),), LAYERS),))
    for name, mixer in MIXERS.items()
}
TOKENIZER = SentencePiece(vocab_size=VOCABULARY)
PROSE = TextData(PythonDocs(), TOKENIZER, seq_len=256, batch_size=8)
# A text a row, as a learned start belongs to one text.
OLD = TextData(PythonDocs(), TOKENIZER, seq_len=256, batch_size=8, packed=False)
NEW = TextData(PythonCode(), PROSE, seq_len=256, batch_size=4, max_bytes=1_000_000, packed=False)

MATRICES = ("blocks/.*/(mixer/(q|k|v|x|z|o)|mlp/(up|gate|down))",)
# The fewer numbers train, the larger their steps.
FEW, MORE, MOST = (3e-4, 1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2), (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
METHODS = {
    "full": ({}, FEW),
    "lora": ({"transforms": (LoRA(MATRICES, rank=8),)}, MORE),
    "dora": ({"transforms": (DoRA(MATRICES, rank=8),)}, MORE),
    "qlora": ({"transforms": (QLoRA(MATRICES, rank=8),)}, MORE),
    "adapter": ({"transforms": (Adapter(),)}, MORE),
    "ia3": ({"transforms": (IA3((("blocks/.*/mixer/(k|v|x)", "out"), ("blocks/.*/mlp/down", "in"))),)}, MOST),
    "bitfit": ({"trainable": (".*bias",)}, MOST),
    "start": ({"transforms": (StateTuning(slots=16),)}, MOST),
    "untouched": ({"train.steps": 1}, (0.0,)),
}


def base(name: str) -> Experiment:
    """A model of prose."""
    return Experiment(
        model=MODELS[name],
        data=PROSE,
        optim=Optim("adamw", lr=6e-3, schedule="cosine", warmup=0.1),
        train=Train(steps=800, eval_every=None, save_every=None, eval_batches=64, keep=1),
    )


def ablation() -> Ablation:
    """Each method on each of two models of prose; the first of each model trains all weights."""
    variants = (
        Variant(f"{model}-{method}", {"base": model, "model": MODELS[model]} | changes, lrs)
        for model in MODELS
        for method, (changes, lrs) in METHODS.items()
    )
    return Ablation(
        name="adaptation",
        description="A model of prose is adapted to code by training all of its weights, few of them, or a few new ones.",
        base=Experiment(
            model=MODELS["gqa"],
            data=NEW,
            optim=Optim("adamw", schedule="cosine", warmup=0.1),
            train=Train(steps=120, log_every=1, eval_batches=64),
        ),
        variants=tuple(variants),
        seeds=(0, 1, 2),
        sweep_steps=60,
        match="none",
        contexts=(256,),
        bases={name: base(name) for name in MODELS},
        others={"prose": OLD},
    )
