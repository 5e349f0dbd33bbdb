"""Adapters of PEFT around small public models: case -> (model, class of the configuration, its fields)."""

from tests.golden.hf_attention import GPT2, NEOX, SIZES, turned
from tests.golden.hf_recurrent import MAMBA

MODELS = {
    "llama": ("llama", SIZES | dict(num_hidden_layers=2, head_dim=6)),
    "qwen2": ("qwen2", SIZES | dict(num_hidden_layers=2, tie_word_embeddings=True)),
    "qwen3": ("qwen3", SIZES | dict(num_hidden_layers=2, head_dim=10)),
    "mamba": ("mamba", MAMBA | dict(num_hidden_layers=2)),
    "gpt2": ("gpt2", GPT2 | dict(n_layer=2)),
    "gpt_neox": ("gpt_neox", NEOX | dict(hidden_size=48, num_hidden_layers=2, rope_parameters=turned(100.0, 0.25))),
}
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# x_proj is our dt_low of 2 outputs, b and c of 5: its adapter's rank is larger.
IN = ["in_proj", "x_proj"]
SVD = dict(init_r=4, target_r=2, lora_alpha=7, orth_reg_weight=0.3, total_step=100, tinit=10, tfinal=20, deltaT=5)

CASES = {
    "lora_llama": ("llama", "LoraConfig", dict(r=3, lora_alpha=5, target_modules=LLAMA, lora_dropout=0.1)),
    "lora_qwen2": (
        "qwen2",
        "LoraConfig",
        dict(
            r=3,
            lora_alpha=5,
            use_rslora=True,
            target_modules=r".*\.(self_attn\.[qkv]_proj|mlp\.down_proj)",
            rank_pattern={"k_proj": 2, "mlp.down_proj": 5},
            alpha_pattern={"v_proj": 9},
        ),
    ),
    "lora_qwen3": ("qwen3", "LoraConfig", dict(r=4, target_modules="all-linear")),
    "lora_mamba": ("mamba", "LoraConfig", dict(r=6, lora_alpha=4, target_modules=IN)),
    "dora_qwen2": ("qwen2", "LoraConfig", dict(r=3, use_dora=True, target_modules=LLAMA)),
    "dora_mamba": ("mamba", "LoraConfig", dict(r=3, use_dora=True, target_modules=IN)),
    # Three weights one after the other, [inputs, outputs]; and three side by side in each head.
    "lora_gpt2": (
        "gpt2",
        "LoraConfig",
        dict(r=3, lora_alpha=5, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    ),
    "dora_gpt_neox": ("gpt_neox", "LoraConfig", dict(r=3, use_dora=True, target_modules=["query_key_value", "dense"])),
    "vera_qwen3": ("qwen3", "VeraConfig", dict(r=7, target_modules=["q_proj", "o_proj", "down_proj"])),
    "vera_mamba": ("mamba", "VeraConfig", dict(r=7, target_modules=IN, projection_prng_key=3)),
    "adalora_llama": ("llama", "AdaLoraConfig", dict(target_modules=LLAMA, **SVD)),
    "adalora_mamba": ("mamba", "AdaLoraConfig", dict(target_modules=IN, **SVD)),
    "ia3_llama": (
        "llama",
        "IA3Config",
        dict(target_modules=["k_proj", "v_proj", "o_proj", "down_proj"], feedforward_modules=["o_proj", "down_proj"]),
    ),
    "ia3_mamba": ("mamba", "IA3Config", dict(target_modules=IN, feedforward_modules=["x_proj"])),
    "prompt_llama": ("llama", "PromptTuningConfig", dict(num_virtual_tokens=3)),
    "prompt_mamba": ("mamba", "PromptTuningConfig", dict(num_virtual_tokens=3, num_attention_heads=1)),
    "prefix_qwen3": ("qwen3", "PrefixTuningConfig", dict(num_virtual_tokens=3)),
}
# Of AdaLoRA, the triplets that are left: layer -> which.
LEFT = {
    "adalora_llama": {
        "model.layers.0.self_attn.q_proj": [True, False, True, False],
        "model.layers.1.mlp.down_proj": [False, False, True, False],
    }
}
