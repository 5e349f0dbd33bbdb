"""Writes rwkv6.npz from RWKV-6 of flash-linear-attention: `make bench-env`, then

.venv-bench/bin/python tests/golden/make_rwkv6.py

Its layers ask for a GPU's kernels. So the layers are its own files, and the recurrence is its own plain one; of what else they
import, four small functions are said here in torch, and the rest stays empty.
"""

import importlib.util
import sys
import sysconfig
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from torch_layers import SEED, case, disturb, draw, write

FLA = Path(sysconfig.get_paths()["purelib"]) / "fla"


class Empty(types.ModuleType):
    """A module in which every name is a class without content."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def stand_in(name, **values):
    """The module `name` has these values and nothing else."""
    sys.modules[name] = Empty(name)
    vars(sys.modules[name]).update(values)


def load(path):
    """A file of the package as a module, without the package."""
    name = "fla." + path.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, FLA / path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class GroupNorm(torch.nn.GroupNorm):
    """Over groups of the last axis."""

    def __init__(self, groups, channels, elementwise_affine, bias, eps):
        assert elementwise_affine and bias
        super().__init__(groups, channels, eps)

    def forward(self, x):
        return super().forward(x.flatten(0, -2)).reshape(x.shape)


def shift(x, cu_seqlens=None):
    """x_{t-1} - x_t."""
    return F.pad(x, (0, 0, 1, -1)) - x


LAST = []  # states after


def recurrence(r, k, v, w, u, scale, **options):
    """The plain recurrence, which has time after the heads."""
    turned = (a.transpose(1, 2) for a in (r, k, v, w))
    o, state = naive.naive_recurrent_rwkv6(*turned, u, scale, output_final_state=True)
    LAST.append(state)
    return o.transpose(1, 2), state


if __name__ == "__main__":
    torch.manual_seed(SEED)
    naive = load("ops/rwkv6/recurrent_naive.py")
    for name in ("cache_utils", "generation_utils", "modeling_utils", "rwkv6.configuration_rwkv6"):
        stand_in(f"fla.models.{name}")
    stand_in("fla.layers.utils", get_layer_cache=lambda *_: None, update_layer_cache=lambda *_, **__: None)
    stand_in("fla.modules", GroupNorm=GroupNorm)
    stand_in("fla.modules.activations", ACT2FN={"swish": F.silu, "sqrelu": lambda x: F.relu(x) ** 2})
    stand_in("fla.modules.token_shift", token_shift=shift)
    stand_in("fla.ops.rwkv6", chunk_rwkv6=recurrence, fused_recurrent_rwkv6=recurrence)
    layers, models = load("layers/rwkv6.py"), load("models/rwkv6/modeling_rwkv6.py")

    def time(name, length, eps, **sizes):
        d, h, mix_rank, decay_rank = (sizes[key] for key in ("d_model", "n_heads", "mix_rank", "decay_rank"))
        mixer = layers.RWKV6Attention(
            hidden_size=d, expand_k=1.0, num_heads=h, proj_low_rank_dim=mix_rank, gate_low_rank_dim=decay_rank, norm_eps=eps
        )  # fmt: skip
        # Weights that start at zero: mixes between 0 and 1, and decays of all kinds.
        for part in (mixer.x_proj[0].mu, mixer.x_bias):
            part.data = torch.rand(part.shape)
        mixer.w_proj.linear.lora[2].bias.data = torch.linspace(-6, 2, d)
        mixer.bonus.data = draw(*mixer.bonus.shape)
        disturb(mixer, std=0.2)
        return case(name, mixer, draw(2, length, d), lambda x: mixer(x)[0], lambda _: LAST[-1], eps=eps, **sizes)

    def channel(name, length, d_model, d_hidden):
        mixer = models.RWKV6FeedForward(d_model, intermediate_size=d_hidden)
        for part in (mixer.key.mu, mixer.receptance.mu):
            part.data = torch.rand(part.shape)
        disturb(mixer)
        return case(name, mixer, draw(2, length, d_model), lambda x: mixer(x)[0], d_model=d_model, d_hidden=d_hidden)

    write(
        "rwkv6",
        time("time", 37, 64e-5, d_model=20, n_heads=2, mix_rank=6, decay_rank=5),
        time("time-wide", 67, 1e-5, d_model=27, n_heads=3, mix_rank=3, decay_rank=7),
        channel("channel", 19, 12, 20),
        channel("channel-wide", 9, 18, 44),
    )
