"""A small public checkpoint: a Llama, a byte-level tokenizer learnt from a few sentences, a chat template."""

import json

import jax
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jaxeff.core.spec import init
from jaxeff.interop import hf
from jaxeff.mixers import GQA, MLP
from jaxeff.mixers.norm import RMSNorm
from jaxeff.models import LM, Block, Stage

TEXT = "the cat sat on the mat, and the dog sat on the log. où est le chat ? \U0001f408\n"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('no ' + m['role']) }}"
    "{% endif %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(path):
    """Writes a byte-level `tokenizer.json` that begins every text with <s>."""
    own = tokenizers.Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    marks = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(
        [TEXT] * 9, trainers.BpeTrainer(vocab_size=300, special_tokens=marks, initial_alphabet=alphabet)
    )
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    own.save(str(path))


def checkpoint(folder):
    """Writes the whole folder; returns the model and its parameters."""
    block = Block(GQA(n_heads=4, n_kv_heads=2), MLP(d_hidden=48), RMSNorm(1e-5))
    model = LM(304, 32, (Stage((block,), 2),), norm=RMSNorm(1e-5), max_positions=256)
    params = init(model.specs(), jax.random.key(0))
    params["embed"] = params["embed"] * 20  # spreads the logits, so that an argmax is never a matter of rounding
    hf.save(folder, model, params)
    tokenizer(folder / "tokenizer.json")
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    return model, params
