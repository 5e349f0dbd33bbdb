"""Configurations of public Transformers: case -> (model_type, fields). Each switch stands both ways over the cases of a family."""

SIZES = dict(
    vocab_size=29, hidden_size=24, intermediate_size=20, num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=2,
    max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=0,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16)
NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
GPT2 = dict(vocab_size=29, n_embd=24, n_layer=3, n_head=6, n_positions=40, bos_token_id=0, eos_token_id=1)


def turned(theta, share):
    """The rotary embedding of a share of the channels."""
    return dict(rope_type="default", rope_theta=theta, partial_rotary_factor=share)


CASES = {
    "llama": ("llama", SIZES | dict(head_dim=6, attention_bias=True, rope_parameters=LLAMA3)),
    "llama_tied": (
        "llama",
        SIZES | dict(tie_word_embeddings=True, mlp_bias=True, rms_norm_eps=1e-3, hidden_act="gelu"),
    ),
    "llama_yarn": ("llama", SIZES | dict(num_key_value_heads=6, rope_parameters=YARN)),
    "llama_linear": ("llama", SIZES | dict(rope_parameters=dict(rope_type="linear", rope_theta=50.0, factor=3.0))),
    "mistral": ("mistral", SIZES | dict(sliding_window=4, head_dim=6)),
    "mistral_tied": ("mistral", SIZES | dict(sliding_window=None, tie_word_embeddings=True)),
    "smollm3": ("smollm3", SIZES | dict(use_sliding_window=True, sliding_window=3, tie_word_embeddings=False)),
    "qwen2": ("qwen2", SIZES | dict(use_sliding_window=True, sliding_window=3, max_window_layers=2)),
    "qwen2_tied": ("qwen2", SIZES | dict(tie_word_embeddings=True, sliding_window=3)),
    "qwen3": ("qwen3", SIZES | dict(head_dim=10, attention_bias=True, rope_parameters=YARN)),
    "qwen3_tied": (
        "qwen3",
        SIZES
        | dict(head_dim=6, tie_word_embeddings=True, use_sliding_window=True, sliding_window=4, max_window_layers=3),
    ),
    "gemma2": ("gemma2", SIZES | dict(head_dim=6, query_pre_attn_scalar=7, sliding_window=4)),
    "gemma2_uncapped": (
        "gemma2",
        SIZES
        | dict(
            head_dim=10,
            attention_bias=True,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            sliding_window=3,
            tie_word_embeddings=False,
        ),
    ),
    "gemma3": (
        "gemma3_text",
        SIZES
        | dict(
            head_dim=6,
            num_hidden_layers=7,
            query_pre_attn_scalar=7,
            sliding_window=4,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e4),
                sliding_attention=dict(rope_type="default", rope_theta=100.0),
            ),
        ),
    ),
    "gemma3_odd": (
        "gemma3_text",
        SIZES
        | dict(
            head_dim=10,
            attention_bias=True,
            layer_types=["full_attention", "sliding_attention"] * 2 + ["full_attention"],
            sliding_window=3,
            final_logit_softcapping=5.0,
            tie_word_embeddings=False,
        ),
    ),
    "phi": ("phi", SIZES | dict(hidden_size=48, rope_parameters=turned(100.0, 0.5))),
    "phi_normed": (
        "phi",
        SIZES | dict(hidden_size=48, qk_layernorm=True, layer_norm_eps=1e-3, rope_parameters=turned(1e4, 1.0)),
    ),
    "phi3": ("phi3", SIZES | dict(sliding_window=4)),
    "phi3_tied": ("phi3", SIZES | dict(tie_word_embeddings=True, hidden_size=48, rope_parameters=turned(100.0, 0.5))),
    "stablelm": ("stablelm", SIZES | dict(hidden_size=48, use_qkv_bias=True)),
    "stablelm_parallel": (
        "stablelm",
        SIZES
        | dict(
            use_parallel_residual=True,
            tie_word_embeddings=True,
            layer_norm_eps=1e-3,
            rope_parameters=turned(100.0, 1.0),
        ),
    ),
    "olmo2": ("olmo2", SIZES | dict(attention_bias=True)),
    "olmo2_tied": ("olmo2", SIZES | dict(tie_word_embeddings=True, num_key_value_heads=6, rms_norm_eps=1e-3)),
    "gpt2": ("gpt2", GPT2),
    "gpt2_untied": (
        "gpt2",
        GPT2 | dict(n_inner=20, tie_word_embeddings=False, activation_function="relu", layer_norm_epsilon=1e-3),
    ),
    "gpt_neox": ("gpt_neox", NEOX | dict(hidden_size=48, rope_parameters=turned(100.0, 0.25))),
    "gpt_neox_serial": (
        "gpt_neox",
        NEOX
        | dict(
            use_parallel_residual=False,
            attention_bias=False,
            tie_word_embeddings=True,
            hidden_act="gelu_new",
            rope_parameters=turned(1e4, 1.0),
        ),
    ),
    "smollm3_no_rope": ("smollm3", SIZES | dict(no_rope_layers=[1, 0, 0, 1, 0], attention_bias=True, mlp_bias=True)),
}
