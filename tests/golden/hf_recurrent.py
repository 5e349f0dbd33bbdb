"""Configurations of public recurrent models: case -> (model_type, fields). Each switch stands both ways over a family's cases."""

SIZES = dict(vocab_size=29, hidden_size=24, num_hidden_layers=3, bos_token_id=0, eos_token_id=1, pad_token_id=0)
MAMBA = SIZES | dict(state_size=5)
RWKV7 = SIZES | dict(fuse_norm=False)
GRIFFIN = SIZES | dict(num_hidden_layers=5, intermediate_size=40, num_attention_heads=3, attention_window_size=6)

CASES = {
    "mamba": ("mamba", MAMBA),
    "mamba_biased": (
        "mamba",
        MAMBA | dict(use_bias=True, use_conv_bias=False, expand=3, conv_kernel=3, time_step_rank=5, layer_norm_epsilon=1e-3,
                     tie_word_embeddings=False, residual_in_fp32=False),
    ),
    "mamba2": ("mamba2", MAMBA | dict(num_heads=6, head_dim=8, n_groups=1, chunk_size=4)),
    "mamba2_grouped": (
        "mamba2",
        MAMBA | dict(num_heads=9, head_dim=8, expand=3, n_groups=3, use_conv_bias=False, conv_kernel=3,
                     time_step_limit=(0.05, 0.3), layer_norm_epsilon=1e-3, tie_word_embeddings=True),
    ),
    "falcon_mamba": ("falcon_mamba", MAMBA),
    "falcon_mamba_biased": (
        "falcon_mamba",
        MAMBA | dict(use_bias=True, use_conv_bias=False, expand=3, conv_kernel=3, time_step_rank=5, mixer_rms_eps=1e-1,
                     layer_norm_epsilon=1e-3, tie_word_embeddings=False),
    ),
    "rwkv": ("rwkv", SIZES),
    "rwkv_narrow": (
        "rwkv",
        SIZES | dict(attention_hidden_size=16, intermediate_size=20, layer_norm_epsilon=1e-2, rescale_every=0,
                     tie_word_embeddings=True),
    ),
    "rwkv7": (
        "rwkv7",
        RWKV7 | dict(head_dim=8, hidden_ratio=3.5, decay_low_rank_dim=5, a_low_rank_dim=4, v_low_rank_dim=3, gate_low_rank_dim=7),
    ),
    "rwkv7_narrow": (
        "rwkv7",
        RWKV7 | dict(head_dim=None, num_heads=2, value_dim=24, intermediate_size=20, norm_first=False, norm_bias=False,
                     decay_low_rank_dim=None, a_low_rank_dim=5, v_low_rank_dim=None, gate_low_rank_dim=6, tie_word_embeddings=True),
    ),
    "recurrent_gemma": ("recurrent_gemma", GRIFFIN),
    "recurrent_gemma_wide": (
        "recurrent_gemma",
        GRIFFIN | dict(block_types=["attention", "recurrent"], lru_width=36, conv1d_width=3, head_dim=12, num_key_value_heads=1,
                       attention_window_size=4, attention_bias=True, logits_soft_cap=2.0, rms_norm_eps=1e-3,
                       rope_parameters=dict(rope_type="default", rope_theta=50.0, partial_rotary_factor=1.0),
                       tie_word_embeddings=False),
    ),
}  # fmt: skip

# name -> (mean, deviation), about as a trained model has them.
DRAWN = {
    r".*\.A_log": (0.5, 0.5), r".*\.D": (1.0, 0.3), r".*\.(dt_bias|dt_proj\.bias)": (-2.0, 1.0),
    r".*\.ln\d\.weight": (1.0, 0.2), r".*\.time_mix_\w+": (0.5, 0.2), r".*\.time_decay": (-1.0, 1.0), r".*\.time_first": (0.0, 1.0),
    r".*\.recurrent_param": (-3.0, 1.0),
    r".*\.x_\w": (0.5, 0.2), r".*\.k_k": (0.7, 0.3), r".*\.k_a": (1.0, 0.3), r".*\.r_k": (0.0, 0.5),
    r".*\.w_lora\.lora\.2\.bias": (-1.0, 1.5), r".*\.[av]_lora\.lora\.2\.bias": (0.0, 1.0),
}  # fmt: skip
