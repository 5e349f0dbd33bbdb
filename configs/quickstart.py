"""A small GQA language model on the documentation of your own Python.

command    jaxeff train configs/quickstart.py --workdir runs/first
hardware   two CPU cores
time       2 to 3 minutes
expected   2.36 bits per byte on the validation split (Python 3.11's documentation)
"""

from jaxeff.data import PythonDocs, SentencePiece, TextData
from jaxeff.mixers import GQA, MLP
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim


def config():
    return Experiment(
        model=LM(vocab_size=1024, d_model=128, stages=(Stage((Block(GQA(), MLP()),), 4),)),
        data=TextData(source=PythonDocs(), tokenizer=SentencePiece(vocab_size=1024), seq_len=256, batch_size=8),
        optim=Optim(name="adamw", lr=3e-3, schedule="cosine"),
        train=Train(steps=500, log_every=10, eval_every=100, save_every=100),
    )
