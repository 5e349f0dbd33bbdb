"""The fields of a `config.json`, each of which is read, or known to change nothing, or an error.

A model that is read wrongly is still a model and answers something: so nothing in a configuration is passed over.
"""

from collections.abc import Mapping
from typing import Any

from jaxeff.core.errors import UserError, nearest

# What changes no logits: names and versions, what a forward pass returns beside them, how it is computed, what text begins and
# ends with, initial values, and dropout, which is a choice of the run that trains.
HARMLESS = frozenset(
    {
        "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "attn_implementation",
        "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id", "dtype", "embd_pdrop", "eos_token_id",
        "hidden_dropout", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder", "label2id", "model_type",
        "output_attentions", "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "resid_pdrop",
        "return_dict", "task_specific_params", "tokenizer_class", "torch_dtype", "transformers.js_config",
        "transformers_version", "unk_token_id", "use_cache",
    }
)  # fmt: skip
REQUIRED = object()


class Fields:
    """The fields of one configuration; `place` is how errors call it.

    fields("hidden_size", int) reads one; fields("head_dim", int, None) one that may be absent or null; `only` one that has a single
    value that is understood; `finish` refuses what has not been asked for.
    """

    def __init__(self, config: Mapping[str, Any], place: str):
        self._config, self.place = dict(config), place
        self._asked: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._config.get(name) is not None

    def has(self, name: str) -> bool:
        """Whether the field is there, if only as null."""
        return name in self._config

    def __call__(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """The field's value. Raises UserError where it is absent and has no default, or is of another kind."""
        self._asked.add(name)
        value = self._config.get(name)
        if value is None:
            if default is REQUIRED:
                raise UserError(f"{self.place}: {name} is missing; {nearest(name, self._config)}")
            return default
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise self.error(name, f"must be of type {kind.__name__}")
        return value

    def only(self, name: str, *understood: Any) -> None:
        """Raises UserError unless the field is absent, null, or one of these."""
        value = self(name, type(self._config.get(name)), None)
        if value is not None and value not in understood:
            choices = " or ".join(map(repr, understood))
            raise self.error(name, f"is understood as {choices} alone" if choices else "is not understood")

    def error(self, name: str, problem: str) -> UserError:
        """One about the field `name`."""
        return UserError(f"{self.place}: {name} {problem}, found {self._config.get(name)!r}")

    def inner(self, name: str) -> "Fields":
        """The fields of an object within this one."""
        return Fields(self(name, dict), f"{self.place}: {name}")

    def finish(self, harmless: frozenset[str] = frozenset()) -> None:
        """Raises UserError for fields that nobody asked for and that are not known to be harmless."""
        left = [name for name in self._config if name not in self._asked | HARMLESS | harmless]
        left = [name for name in left if self._config[name] is not None]
        if left:
            found = ", ".join(f"{name}={self._config[name]!r}" for name in left)
            raise UserError(
                f"{self.place}: {found} not understood: a model that leaves it aside could be silently another one;"
                f" {nearest(left[0], self._asked)}"
            )
