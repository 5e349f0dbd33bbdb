"""Writes peft.npz from adapters of Hugging Face PEFT around layers of transformers: `make bench-env`, then

.venv-bench/bin/python tests/golden/make_peft.py

Every array that trains is drawn, so that no update is zero. PEFT refuses to adapt `out_proj` of a Mamba, whose kernels read weights
past the adapter; what runs on the CPU calls it, and reads past `dt_proj` alone.
"""

from types import SimpleNamespace

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, VeraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch_layers import SEED, case, disturb, draw, write
from transformers import LlamaConfig, MambaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.mamba.modeling_mamba import MambaMixer

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MAMBA = ["in_proj", "x_proj", "dt_proj", "out_proj"]


class Whole(Linear):
    """A LoRA whose `weight` has the update in it, for a layer that reads it."""

    @property
    def weight(self):
        """base + update."""
        return self.base_layer.weight + self.get_delta_weight("default")


def adapted(layer, config):
    """PEFT's model around a layer that it has adapted; held in a dictionary, which has no `config` to be refused by."""
    disturb(layer)
    model = get_peft_model(torch.nn.ModuleDict({"layer": layer}), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += draw(*parameter.shape, std=0.3)
    return model.base_model


def llama(name, method, config, **settings):
    """The case of one adapter in a Llama layer; settings: as our transform calls them."""
    sizes = dict(d_model=12, n_heads=4, n_kv_heads=2, head_dim=6, d_hidden=22)
    published = LlamaConfig(
        hidden_size=12, num_attention_heads=4, num_key_value_heads=2, head_dim=6, intermediate_size=22, num_hidden_layers=1,
        vocab_size=16, rms_norm_eps=1e-5, attn_implementation="eager",
        rope_parameters=dict(rope_type="default", rope_theta=10000.0),
    )  # fmt: skip
    layer, time = LlamaDecoderLayer(published, 0), 13
    model = adapted(layer, config)
    x, positions = draw(2, time, 12), torch.arange(time)[None]
    mask = torch.full((time, time), torch.finfo(torch.float32).min).triu(1)[None, None]
    rope = LlamaRotaryEmbedding(published)(x, positions)
    run = lambda x: layer(x, attention_mask=mask, position_embeddings=rope)
    arrays = case(name, layer, x, run, around="llama", method=method, sizes=sizes, settings=settings)
    if method == "vera":
        arrays |= {f"{name}/param/{part}": getattr(model, part)["default"].numpy() for part in ("vera_A", "vera_B")}
    if method == "adalora":
        model.model.forward = lambda: SimpleNamespace(loss=torch.zeros(()))
        arrays[f"{name}/penalty"] = model().loss.detach().numpy()
    return arrays


def mamba(name, method, config, **settings):
    """The case of LoRA in a Mamba layer."""
    sizes = dict(d_model=14, expand=2, d_state=6, dt_rank=5, width=3)
    published = MambaConfig(
        hidden_size=14, state_size=6, expand=2, conv_kernel=3, time_step_rank=5, num_hidden_layers=1, vocab_size=16,
        use_mambapy=False,
    )  # fmt: skip
    layer = MambaMixer(published, layer_idx=0, initialize_mixer_weights=False)
    layer.init_mamba_weights()
    adapted(layer, config)
    layer.dt_proj.__class__ = Whole
    return case(name, layer, draw(2, 19, 14), around="mamba", method=method, sizes=sizes, settings=settings)


if __name__ == "__main__":
    torch.manual_seed(SEED)
    low_rank, names = dict(rank=3, alpha=5.0), dict(r=3, lora_alpha=5.0, target_modules=LLAMA)
    svd = AdaLoraConfig(init_r=5, target_r=2, lora_alpha=7.0, orth_reg_weight=0.3, total_step=100, target_modules=LLAMA)
    scaled = dict(target_modules=["k_proj", "v_proj", "up_proj", "o_proj", "down_proj"])
    write(
        "peft",
        llama("lora", "lora", LoraConfig(**names), **low_rank),
        llama("rslora", "lora", LoraConfig(use_rslora=True, **names), rank_stabilised=True, **low_rank),
        llama("dora", "dora", LoraConfig(use_dora=True, **names), **low_rank),
        llama("vera", "vera", VeraConfig(r=7, target_modules=LLAMA), rank=7),
        llama("ia3", "ia3", IA3Config(feedforward_modules=["o_proj", "down_proj"], **scaled)),
        llama("adalora", "adalora", svd, rank=5, target=2.0, alpha=7.0, orthogonality=0.3),
        mamba("mamba lora", "lora", LoraConfig(r=3, lora_alpha=5.0, target_modules=MAMBA), **low_rank),
    )
