"""Mamba-2 of 1.0 B parameters.

command    jaxeff train configs/tpu/mamba2_1b.py --data text --workdir runs/mamba2_1b
           text: a folder with texts of your own, see docs/own_text.md; docs/tpu.md says how to get there
expected   nobody has run it; what `jaxeff plan configs/tpu/mamba2_1b.py --topology ...` says, --set what stands last:
           topology     a step      MFU  tokens/s a chip    memory
           v5e:4x4        567 ms   47.2 %       14,457   4.0 GiB
           v5p:4x4x4      521 ms   44.1 %       31,458   6.0 GiB  mesh.data=8 mesh.fsdp=8 data.batch_size=512
           v6e:8x8        526 ms   21.8 %       31,123   6.0 GiB  mesh.data=8 mesh.fsdp=8 data.batch_size=512
"""

from jaxeff.data import SentencePiece, Text, TextData
from jaxeff.mixers import Mamba2
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, MeshShape, Train
from jaxeff.train.optim import Optim

VOCABULARY = 32768


def config():
    block = Block(Mamba2(head_dim=64), None)
    return Experiment(
        model=LM(VOCABULARY, 2048, (Stage((block,), 37),), remat="full"),
        data=TextData(Text(("text",)), SentencePiece(VOCABULARY), seq_len=2048, batch_size=64),
        optim=Optim(lr=5e-4, schedule="cosine"),
        train=Train(steps=20000, eval_every=1000, save_every=1000),
        mesh=MeshShape(data=2, fsdp=8),
        precision="bfloat16",
    )
