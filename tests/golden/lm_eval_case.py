"""The public checkpoint whose answers to lm-eval are compared: a Llama of few positions with drawn weights."""

import json
from pathlib import Path

from safetensors.numpy import save_file

from tests.golden.hf_cases import drawn
from tests.interop.byte_level import special, tokenizer

TASKS = Path(__file__).parent / "lm_eval"
NAMES = ("jaxeff_choice", "jaxeff_text", "jaxeff_answer")
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "the cat ?"},
    {"role": "assistant", "content": " on the mat"},
]
LAYERS, WIDTH, HIDDEN, HEAD, HEADS, GROUPS, VOCABULARY = 2, 32, 48, 8, 4, 2, 304
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": WIDTH,
    "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS,
    "max_position_embeddings": 96, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1, "rope_theta": 10000.0,
}  # fmt: skip


def shapes() -> dict[str, tuple[int, ...]]:
    """name -> shape of each tensor."""
    block = {
        "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,), "self_attn.q_proj": (HEADS * HEAD, WIDTH),
        "self_attn.k_proj": (GROUPS * HEAD, WIDTH), "self_attn.v_proj": (GROUPS * HEAD, WIDTH),
        "self_attn.o_proj": (WIDTH, HEADS * HEAD), "mlp.gate_proj": (HIDDEN, WIDTH), "mlp.up_proj": (HIDDEN, WIDTH),
        "mlp.down_proj": (WIDTH, HIDDEN),
    }  # fmt: skip
    blocks = {f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in block.items()}
    ends = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "lm_head.weight": (VOCABULARY, WIDTH)}
    return blocks | ends | {"model.norm.weight": (WIDTH,)}


def write(folder: Path, seed: int) -> None:
    """Writes the checkpoint, a function of the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(folder / "tokenizer.json")
    special(folder)
    path = folder / "tokenizer_config.json"
    plain = {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(json.loads(path.read_text()) | plain))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = {name: drawn(name, shape, seed) for name, shape in shapes().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
