"""A Llama-like model of 7.1 B parameters.

command    jaxeff train configs/tpu/gqa_7b.py --data text --workdir runs/gqa_7b
           text: a folder with texts of your own, see docs/own_text.md; docs/tpu.md says how to get there
expected   nobody has run it; what `jaxeff plan configs/tpu/gqa_7b.py --topology ...` says, --set what stands last:
           topology     a step      MFU  tokens/s a chip    memory
           v5e:4x4      2,846 ms   65.0 %        2,879  13.5 GiB
           v5p:4x4x4    2,384 ms   66.6 %        6,874  18.5 GiB  mesh.data=4 data.batch_size=512
           v6e:8x8      2,300 ms   34.5 %        7,124  18.4 GiB  mesh.data=4 data.batch_size=512
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
        model=LM(VOCABULARY, 4096, (Stage((block,), 32),), remat="attention"),
        data=TextData(Text(("text",)), SentencePiece(VOCABULARY), seq_len=2048, batch_size=64),
        optim=Optim(lr=3e-4, schedule="cosine"),
        train=Train(steps=50000, eval_every=1000, save_every=1000),
        mesh=MeshShape(fsdp=16),
        precision="bfloat16",
    )
