"""Writes mamba2.npz from Mamba-2 of Hugging Face transformers: `make bench-env`, then

.venv-bench/bin/python tests/golden/make_mamba2.py
"""

import torch
from torch_layers import SEED, cached, case, disturb, draw, write
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

if __name__ == "__main__":
    torch.manual_seed(SEED)

    def layer(name, time, **sizes):
        d, heads = sizes["d_model"], sizes["expand"] * sizes["d_model"] // sizes["head_dim"]
        config = Mamba2Config(
            hidden_size=d, num_heads=heads, head_dim=sizes["head_dim"], expand=sizes["expand"], n_groups=sizes["n_groups"],
            state_size=sizes["d_state"], conv_kernel=sizes["width"], num_hidden_layers=1, chunk_size=16, vocab_size=16,
            time_step_limit=tuple(sizes["dt_limit"]),
        )  # fmt: skip
        mixer = Mamba2Mixer(config, layer_idx=0)
        disturb(mixer)
        return case(name, mixer, draw(2, time, d), state=cached(mixer, config), **sizes)

    small = dict(d_model=20, expand=2, head_dim=10, n_groups=2, d_state=12, width=4, dt_limit=(0.0, 1e9))
    wide = dict(d_model=36, expand=3, head_dim=18, n_groups=1, d_state=24, width=3, dt_limit=(0.01, 0.3))
    write("mamba2", layer("small", 37, **small), layer("wide", 70, **wide))
