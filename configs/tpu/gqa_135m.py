"""A Llama-like model of 135 M parameters.

command    jaxeff train configs/tpu/gqa_135m.py --data text --workdir runs/gqa_135m
           text: a folder with texts of your own, see docs/own_text.md; docs/tpu.md says how to get there
expected   nobody has run it; what `jaxeff plan configs/tpu/gqa_135m.py --topology ...` says, --set what stands last:
           topology     a step      MFU  tokens/s a chip    memory
           v5e:4x4        178 ms   45.8 %       91,972   5.3 GiB
           v5p:4x4x4      307 ms   45.6 %      213,303  19.8 GiB  mesh.data=64 mesh.fsdp=1 data.batch_size=2048
           v6e:8x8        473 ms   14.8 %      138,524  20.3 GiB  mesh.data=64 mesh.fsdp=1 data.batch_size=2048
"""

from jaxeff.data import SentencePiece, Text, TextData
from jaxeff.mixers import GQA, MLP
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, MeshShape, Train
from jaxeff.train.optim import Optim

VOCABULARY = 32768


def config():
    block = Block(GQA(n_heads=6, n_kv_heads=2), MLP(d_hidden=2304))
    return Experiment(
        model=LM(VOCABULARY, 768, (Stage((block,), 16),), remat="dots"),
        data=TextData(Text(("text",)), SentencePiece(VOCABULARY), seq_len=2048, batch_size=128),
        optim=Optim(lr=1e-3, schedule="cosine"),
        train=Train(steps=5000, eval_every=1000, save_every=1000),
        mesh=MeshShape(data=2, fsdp=8),
        precision="bfloat16",
    )
