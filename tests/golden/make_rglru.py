"""Writes rglru.npz from RecurrentGemma of Hugging Face transformers: `make bench-env`, then

.venv-bench/bin/python tests/golden/make_rglru.py
"""

import torch
from torch_layers import SEED, case, disturb, draw, write
from transformers import RecurrentGemmaConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
    RecurrentGemmaPreTrainedModel,
    RecurrentGemmaRecurrentBlock,
)


class Block(RecurrentGemmaPreTrainedModel):
    """One recurrent block with the initial values of the model it is from."""

    def __init__(self, config):
        super().__init__(config)
        self.block = RecurrentGemmaRecurrentBlock(config, layer_idx=0)
        self.post_init()


if __name__ == "__main__":
    torch.manual_seed(SEED)

    def layer(name, time, d_model, d_rnn, n_heads, width):
        config = RecurrentGemmaConfig(
            hidden_size=d_model, lru_width=d_rnn, num_attention_heads=n_heads, conv1d_width=width, num_hidden_layers=1,
            vocab_size=16, w_init_variance_scale=1.0,
        )  # fmt: skip
        block = Block(config).eval().block
        disturb(block)
        position = torch.arange(time)[None]
        run = lambda x: block(x, position, None, use_cache=False)[0]

        def state(x):
            block(x, position, None, use_cache=True)
            return block.rg_lru.recurrent_states

        sizes = dict(d_model=d_model, d_rnn=d_rnn, n_heads=n_heads, width=width)
        return case(name, block, draw(2, time, d_model), run, state, **sizes)

    write(
        "rglru",
        layer("small", 37, d_model=20, d_rnn=20, n_heads=2, width=4),
        layer("wide", 51, d_model=15, d_rnn=36, n_heads=3, width=3),
    )
