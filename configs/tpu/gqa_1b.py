"""A Llama-like model of 1.0 B parameters.

command    jaxeff train configs/tpu/gqa_1b.py --data text --workdir runs/gqa_1b
           text: a folder with texts of your own, see docs/own_text.md; docs/tpu.md says how to get there
expected   nobody has run it; what `jaxeff plan configs/tpu/gqa_1b.py --topology ...` says, --set what stands last:
           topology     a step      MFU  tokens/s a chip    memory
           v5e:4x4        435 ms   64.0 %       18,835   9.1 GiB
           v5p:4x4x4      359 ms   66.5 %       45,631  16.4 GiB  mesh.data=8 mesh.fsdp=8 data.batch_size=512
           v6e:8x8        406 ms   29.4 %       40,369   6.0 GiB  mesh.data=8 mesh.fsdp=8 data.batch_size=512 model.remat=attention
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
