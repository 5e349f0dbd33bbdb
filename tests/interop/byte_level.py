"""A small tokenizer of a public checkpoint, byte-level, learnt from a few sentences, with a chat template. Needs no JAX: makers of
golden files use it too."""

import json

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

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


def special(folder):
    """Writes what stands beside it: special tokens, the chat template."""
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
