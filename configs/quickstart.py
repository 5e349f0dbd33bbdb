"""A small GQA language model on the documentation of your own Python.

command    jaxeff train configs/quickstart.py --workdir runs/first
hardware   two CPU cores
time       2 to 3 minutes
expected   1.85 bits per byte on the validation split (Python 3.11's documentation)
"""

from jaxeff.data import PythonDocs, SentencePiece, TextData
from jaxeff.mixers import GQA, MLP
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.optim import Optim

VOCABULARY = 4096


def config():
    return Experiment(
        model=LM(vocab_size=VOCABULARY, d_model=128, stages=(Stage((Block(GQA(), MLP()),), 4),)),
        data=TextData(source=PythonDocs(), tokenizer=SentencePiece(vocab_size=VOCABULARY), seq_len=256, batch_size=4),
        optim=Optim(name="muon", lr=1e-2, schedule="cosine"),
        train=Train(steps=700, log_every=10, eval_every=350, save_every=350),
    )
