"""Writes mamba.npz from Mamba and Falcon-Mamba of Hugging Face transformers: `make bench-env`, then

.venv-bench/bin/python tests/golden/make_mamba.py
"""

import torch
from torch_layers import SEED, cached, case, disturb, draw, write
from transformers import FalconMambaConfig, MambaConfig
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

if __name__ == "__main__":
    torch.manual_seed(SEED)

    def layer(name, time, make, config, init, extra={}, **sizes):  # noqa: B006  read only
        d, rank = sizes["d_model"], sizes["dt_rank"]
        config = config(
            hidden_size=d, state_size=sizes["d_state"], expand=sizes["expand"], conv_kernel=sizes["width"],
            time_step_rank="auto" if rank is None else rank, num_hidden_layers=1, vocab_size=16, use_mambapy=False, **extra,
        )  # fmt: skip
        mixer = make(config, layer_idx=0, initialize_mixer_weights=False).eval()
        getattr(mixer, init)()  # the constructor's own call comes before Falcon's norms are there
        disturb(mixer)
        return case(name, mixer, draw(2, time, d), state=cached(mixer, config), **sizes)

    small = dict(d_model=20, expand=2, d_state=6, dt_rank=None, width=4)
    wide = dict(d_model=14, expand=3, d_state=11, dt_rank=5, width=3)
    mamba = dict(make=MambaMixer, config=MambaConfig, init="init_mamba_weights")
    falcon = dict(make=FalconMambaMixer, config=FalconMambaConfig, init="init_falcon_mamba_weights")
    write(
        "mamba",
        layer("small", 37, **mamba, **small),
        layer("wide", 51, **mamba, **wide),
        layer("falcon small", 37, extra=dict(mixer_rms_eps=1e-6), bcdt_eps=1e-6, **falcon, **small),
        layer("falcon wide", 51, extra=dict(mixer_rms_eps=1e-2), bcdt_eps=1e-2, **falcon, **wide),
    )
