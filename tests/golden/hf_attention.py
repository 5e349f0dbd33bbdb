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

CASES = {
    "llama": ("llama", SIZES | dict(head_dim=6, attention_bias=True, rope_parameters=LLAMA3)),
    "llama_tied": ("llama", SIZES | dict(tie_word_embeddings=True, mlp_bias=True, rms_norm_eps=1e-3, hidden_act="gelu")),
    "llama_yarn": ("llama", SIZES | dict(num_key_value_heads=6, rope_parameters=YARN)),
    "llama_linear": ("llama", SIZES | dict(rope_parameters=dict(rope_type="linear", rope_theta=50.0, factor=3.0))),
    "mistral": ("mistral", SIZES | dict(sliding_window=4, head_dim=6)),
    "mistral_tied": ("mistral", SIZES | dict(sliding_window=None, tie_word_embeddings=True)),
    "smollm3": ("smollm3", SIZES | dict(use_sliding_window=True, sliding_window=3, tie_word_embeddings=False)),
    "smollm3_no_rope": ("smollm3", SIZES | dict(no_rope_layers=[1, 0, 0, 1, 0], attention_bias=True, mlp_bias=True)),
}  # fmt: skip
