"""Three layers of Gated DeltaNet to one of attention, 0.87 B parameters.

command    jaxeff train configs/tpu/hybrid_1b.py --data text --workdir runs/hybrid_1b
           text: a folder with texts of your own, see docs/own_text.md; docs/tpu.md says how to get there
expected   nobody has run it; what `jaxeff plan configs/tpu/hybrid_1b.py --topology ...` says, --set what stands last:
           topology     a step      MFU  tokens/s a chip    memory
           v5e:4x4        669 ms   50.5 %       18,375  13.0 GiB
           v5p:4x4x4      411 ms   47.0 %       39,857  15.8 GiB  mesh.data=8 mesh.fsdp=8 data.batch_size=512
           v6e:8x8        501 ms   19.3 %       32,721  16.9 GiB  mesh.data=8 mesh.fsdp=8 data.batch_size=512
"""

from jaxeff.data import SentencePiece, Text, TextData
from jaxeff.mixers import GQA, MLP, GatedDeltaNet
from jaxeff.models import LM, Block, Stage
from jaxeff.train.experiment import Experiment, MeshShape, Train
from jaxeff.train.optim import Optim

VOCABULARY = 32768


def config():
    mlp = MLP(d_hidden=5632)
    recurrent = Block(GatedDeltaNet(n_heads=16, n_key_heads=8, head_dim=128, value_dim=128), mlp)
    attention = Block(GQA(n_heads=16, n_kv_heads=4), mlp)
    return Experiment(
        model=LM(VOCABULARY, 2048, (Stage((recurrent, recurrent, recurrent, attention), 4),), remat="dots"),
        data=TextData(Text(("text",)), SentencePiece(VOCABULARY), seq_len=2048, batch_size=96),
        optim=Optim(lr=5e-4, schedule="cosine"),
        train=Train(steps=20000, eval_every=1000, save_every=1000),
        mesh=MeshShape(data=2, fsdp=8),
        precision="bfloat16",
    )
