"""A small GQA language model on the documentation of your own Python.

    jaxeff train configs/quickstart.py --workdir runs/gqa
    jaxeff eval --workdir runs/gqa --split test
    jaxeff generate --workdir runs/gqa --prompt "Return the" --max-tokens 60
"""

from jaxeff.data import Data, PythonDocs, SentencePiece
from jaxeff.models import LM
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim


def config() -> Experiment:
    return Experiment(
        model=LM(vocab_size=1024, d_model=128, pattern=("gqa",), repeats=4),
        data=Data(source=PythonDocs(), tokenizer=SentencePiece(vocab_size=1024), seq_len=256, batch_size=8),
        optim=Optim(lr=3e-3),
        train=Train(steps=500, eval_every=100, save_every=100),
    )
