"""A Llama-like model of 7.1 B parameters.

command    jaxeff train configs/tpu/gqa_7b.py --data text --workdir runs/gqa_7b
           text: a folder with texts of your own, see docs/own_text.md; docs/tpu.md says how to get there
expected   nobody has run it; what `jaxeff plan configs/tpu/gqa_7b.py --topology ...` says, with these --set:
           topology   --set                                    a step     MFU    tokens/s a chip, memory of a chip
           v5e:4x4                                              3,310 ms  55.9 %     2,475   11.7 GiB
"""

from jaxeff.data import SentencePiece, Text, TextData
from jaxeff.mixers import GQA, MLP
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, MeshShape, Train
from jaxeff.train.optim import Optim

VOCABULARY = 32768


def config():
    block = Block(GQA(n_heads=32, n_kv_heads=8), MLP(d_hidden=14336))
    return Experiment(
        model=LM(VOCABULARY, 4096, (Stage((block,), 32),), remat="full"),
        data=TextData(Text(("text",)), SentencePiece(VOCABULARY), seq_len=2048, batch_size=64),
        optim=Optim(lr=3e-4, schedule="cosine"),
        train=Train(steps=50000, eval_every=1000, save_every=1000),
        mesh=MeshShape(fsdp=16),
        precision="bfloat16",
    )
