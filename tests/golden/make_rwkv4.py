"""Writes rwkv4.npz from RWKV-4 of Hugging Face transformers: `make bench-env`, then

.venv-bench/bin/python tests/golden/make_rwkv4.py

The layers are run as in training: without state, and without the division of weights by which a model in evaluation avoids
overflows of float16.
"""

import torch
from torch_layers import SEED, case, disturb, draw, write
from transformers import RwkvConfig
from transformers.models.rwkv.modeling_rwkv import RwkvFeedForward, RwkvSelfAttention

if __name__ == "__main__":
    torch.manual_seed(SEED)

    def config(d, a, f):
        return RwkvConfig(
            vocab_size=16, context_length=128, hidden_size=d, attention_hidden_size=a, intermediate_size=f, num_hidden_layers=2,
            rescale_every=0,
        )  # fmt: skip

    def time(name, length, d_model, d_attention):
        mixer = RwkvSelfAttention(config(d_model, d_attention, None), layer_id=0).train()
        # Weights of which the layer itself starts only with undefined values: all between 0 and 1, and decays of all kinds.
        for part in (mixer.time_mix_key, mixer.time_mix_value, mixer.time_mix_receptance):
            part.data = torch.rand(part.shape)
        mixer.time_decay.data = torch.linspace(-5, 3, d_attention)
        mixer.time_first.data = draw(d_attention)
        disturb(mixer)

        def state(x):
            """Numerator and denominator, which the layer keeps divided by exp of their greatest exponent."""
            empty = [torch.zeros(2, n, 1) for n in (d_model, d_model, d_attention, d_attention, d_attention)]
            empty[4] -= 1e30
            *_, num, den, top = mixer(x, state=empty, use_cache=True)[1]
            return torch.stack([num, den])[..., 0] * torch.exp(top[..., 0])

        sizes = dict(d_model=d_model, d_attention=d_attention)
        return case(name, mixer, draw(2, length, d_model), lambda x: mixer(x)[0], state, **sizes)

    def channel(name, length, d_model, d_hidden):
        mixer = RwkvFeedForward(config(d_model, None, d_hidden), layer_id=0).train()
        for part in (mixer.time_mix_key, mixer.time_mix_receptance):
            part.data = torch.rand(part.shape)
        disturb(mixer)
        return case(name, mixer, draw(2, length, d_model), lambda x: mixer(x)[0], d_model=d_model, d_hidden=d_hidden)

    write(
        "rwkv4",
        time("time", 37, 20, 20),
        time("time-wide", 70, 18, 28),
        channel("channel", 19, 12, 20),
        channel("channel-wide", 9, 18, 44),
    )
