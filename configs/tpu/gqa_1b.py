"""A Llama-like model of 1.0 B parameters.

command    jaxeff train configs/tpu/gqa_1b.py --data text --workdir runs/gqa_1b
           text: a folder with texts of your own, see docs/own_text.md; docs/tpu.md says how to get there
expected   nobody has run it; what `jaxeff plan configs/tpu/gqa_1b.py --topology ...` says, with these --set:
           topology   --set                                    a step     MFU    tokens/s a chip, memory of a chip
           v5e:4x4                                                454 ms  61.4 %    18,055    9.3 GiB
           v6e:8x8    mesh.data=1 mesh.fsdp=64 data.batch_size=256 227 ms  26.3 %    36,054    7.8 GiB
"""

from jaxeff.data import SentencePiece, Text, TextData
from jaxeff.mixers import GQA, MLP
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, MeshShape, Train
from jaxeff.train.optim import Optim

VOCABULARY = 32768


def config():
    block = Block(GQA(n_heads=16, n_kv_heads=4), MLP(d_hidden=8192))
    return Experiment(
        model=LM(VOCABULARY, 2048, (Stage((block,), 16),), remat="dots"),
        data=TextData(Text(("text",)), SentencePiece(VOCABULARY), seq_len=2048, batch_size=64),
        optim=Optim(lr=5e-4, schedule="cosine"),
        train=Train(steps=20000, eval_every=1000, save_every=1000),
        mesh=MeshShape(data=2, fsdp=8),
        precision="bfloat16",
    )
