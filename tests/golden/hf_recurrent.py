"""Configurations of public recurrent models: case -> (model_type, fields). Each switch stands both ways over a family's cases."""

SIZES = dict(vocab_size=29, hidden_size=24, num_hidden_layers=3, bos_token_id=0, eos_token_id=1, pad_token_id=0)
MAMBA = SIZES | dict(state_size=5)

CASES = {
    "mamba": ("mamba", MAMBA),
    "mamba_biased": (
        "mamba",
        MAMBA | dict(use_bias=True, use_conv_bias=False, expand=3, conv_kernel=3, time_step_rank=5, layer_norm_epsilon=1e-3,
                     tie_word_embeddings=False, residual_in_fp32=False),
    ),
}  # fmt: skip
# name -> (mean, deviation), about as a trained model has them.
DRAWN = {
    r".*\.A_log": (0.5, 0.5), r".*\.D": (1.0, 0.3), r".*\.(dt_bias|dt_proj\.bias)": (-2.0, 1.0),
    r".*\.ln\d\.weight": (1.0, 0.2), r".*\.time_mix_\w+": (0.5, 0.2), r".*\.time_decay": (-1.0, 1.0), r".*\.time_first": (0.0, 1.0),
    r".*\.recurrent_param": (-3.0, 1.0),
}  # fmt: skip
