"""Answers to the requests of EleutherAI's lm-eval, for any LM with its parameters and tokenizer, as its Hugging Face model gives
them. The answers need no lm-eval; `register` and `table` do: `pip install 'jaxeff[lm_eval]'`.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxeff.core.errors import UserError, nearest
from jaxeff.core.precision import POLICIES, Policy
from jaxeff.data.tokenizers import Tokenizer
from jaxeff.evaluate.likelihood import loglikelihoods, rounded
from jaxeff.mixers.start import START, length
from jaxeff.models.generate import in_pieces
from jaxeff.models.lm import LM

UNBOUNDED = 2048  # tokens that are read at most of a text, where the model has no bound of its own
MAX_TOKENS = 256  # generated where a task does not say
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # one thing, the first counts
FILTERS = ("top_k", "top_p", "min_p")
KNOWN = ("until", "do_sample", "temperature", "num_beams", *FILTERS, *LIMITS)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a text is generated: strings that end it, tokens at most, temperature (0: greedy), filters as `generate` has them."""

    stops: tuple[str, ...]
    max_tokens: int
    temperature: float
    filters: tuple[tuple[str, float | None], ...]


def settings(asked: Mapping[str, Any], vocab_size: int) -> Settings:
    """Those of a task's `generation_kwargs`. Raises UserError for what is not known, and for sampling without a temperature."""
    for name in asked:
        if name not in KNOWN:
            raise UserError(f"generation_kwargs has {name}, which is not understood; {nearest(name, KNOWN)}")
    if asked.get("num_beams", 1) != 1:
        raise UserError(
            f"generation_kwargs has num_beams={asked['num_beams']}; beams are not searched, only 1 is known"
        )
    until = asked.get("until") or []
    stops = [until] if isinstance(until, str) else until
    temperature = float(asked.get("temperature") or 0)
    if asked.get("do_sample") and not temperature > 0:
        raise UserError(f"generation_kwargs has do_sample and temperature={temperature:g}; sampling needs one above 0")
    limits = [int(asked[name]) for name in LIMITS if asked.get(name) is not None]
    off = {"top_k": (0, -1), "top_p": (1,), "min_p": (0,)}
    filters = {name: None if asked.get(name) in (None, *off[name]) else asked[name] for name in FILTERS}
    if filters["top_k"] is not None:
        filters["top_k"] = min(int(filters["top_k"]), vocab_size)
    temperature = temperature if asked.get("do_sample", True) else 0.0
    filters = filters if temperature else dict.fromkeys(FILTERS)  # of no consequence where nothing is drawn
    return Settings(
        tuple(stop for stop in stops if stop), next(iter(limits), MAX_TOKENS), temperature, tuple(filters.items())
    )


class Evaluator:
    """Answers requests in their order, in batches of one size; what was asked before and is not sampled is not computed again.

    max_length: tokens that are read at most, None: the model's positions, 2048 where it has no bound. seed: of what is sampled.
    """

    def __init__(
        self,
        lm: LM,
        params,
        tokenizer: Tokenizer,
        *,
        policy: Policy = POLICIES["float32"],
        batch_size: int = 8,
        max_length: int | None = None,
        seed: int = 0,
    ):
        self.lm, self.params, self.tokenizer, self.policy, self.batch_size = lm, params, tokenizer, policy, batch_size
        own = None if lm.max_positions is None else lm.max_positions - length(params.get(START, {}))
        self.max_length = max_length or own or UNBOUNDED
        if own is not None and self.max_length > own:
            raise UserError(f"max_length={max_length}: the model has {own} positions")
        self._key, self._drawn = jax.random.key(seed), 0
        self._known: dict[Any, Any] = {}

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-probability, and whether it is what greedy decoding gives.

        Raises UserError where a continuation has no tokens, or more than the model reads.
        """
        return self._scored([self._split(*request) for request in requests])

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each whole text, each token after as many before it as the model reads."""
        windows = [_windows(self.tokenizer.scored(text), self.tokenizer.prefix_id, self.max_length) for text in texts]
        found = iter(self._scored([pair for each in windows for pair in each]))
        return [sum(next(found)[0] for _ in each) for each in windows]

    def generate_until(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """For each (context, generation_kwargs): the text that follows, up to what ends it.

        Raises UserError for settings that are not known, and where no room is left for a context.
        """
        asked = []
        for context, how in requests:
            chosen = settings(how, self.lm.vocab_size)
            room = self.max_length - chosen.max_tokens
            if room < 1:
                raise UserError(
                    f"max_gen_toks={chosen.max_tokens} leaves no room; the model reads {self.max_length} tokens"
                )
            asked.append((tuple(self.tokenizer.prompt(context) or [self.tokenizer.prefix_id])[-room:], chosen))
        # What is sampled is drawn anew each time it is asked for.
        keys = [(*each, i if each[1].temperature else None) for i, each in enumerate(asked)]
        fresh = dict.fromkeys(key for key in keys if key[2] is not None or key not in self._known)
        texts = {}
        for chosen in dict.fromkeys(key[1] for key in fresh):
            alike = sorted((key for key in fresh if key[1] == chosen), key=lambda key: len(key[0]))
            for start in range(0, len(alike), self.batch_size):
                batch = alike[start : start + self.batch_size]
                texts |= zip(batch, self._generated([key[0] for key in batch], chosen), strict=True)
        self._known |= {key: text for key, text in texts.items() if key[2] is None}
        return [texts[key] if key in texts else self._known[key] for key in keys]

    def rendered(self, messages: Sequence[Mapping[str, str]], begin_answer: bool = True) -> str:
        """A conversation as text; without a system message where the chat template refuses it.

        begin_answer False: the last message is unfinished. Raises UserError where there is no template, or it refuses.
        """
        if not hasattr(self.tokenizer, "rendered"):
            raise UserError("this tokenizer has no chat template: the model was not trained to chat")
        try:
            return self.tokenizer.rendered(messages, begin_answer)
        except UserError:
            plain = [message for message in messages if message["role"] != "system"]
            if len(plain) == len(messages):
                raise
            return self.tokenizer.rendered(plain, begin_answer)

    @property
    def template(self) -> str | None:
        """The chat template, None where there is none."""
        return getattr(self.tokenizer, "template", None)

    @property
    def identity(self) -> str:
        """Equal where requests become the same tokens."""
        return hashlib.sha256(f"{self.tokenizer.identity} {self.template}".encode()).hexdigest()[:16]

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of both. Spaces between them belong to the continuation, and both are encoded as one text."""
        own = self.tokenizer
        if not context:
            ids = own.continued(continuation)
            return (ids[:1], ids[1:]) if ids[:1] == [own.prefix_id] else ([own.prefix_id], ids)
        kept = own.prompt(context.rstrip())
        return kept or [own.prefix_id], own.prompt(context + continuation)[len(kept) :]

    def _scored(self, pairs) -> list[tuple[float, bool]]:
        keys = [(tuple(context), tuple(continuation)) for context, continuation in pairs]
        fresh = list(dict.fromkeys(key for key in keys if key not in self._known))
        how = dict(batch_size=self.batch_size, policy=self.policy)
        found = loglikelihoods(self.lm, self.params, fresh, self.max_length, **how)
        self._known |= zip(fresh, found, strict=True)
        return [self._known[key] for key in keys]

    def _generated(self, prompts: list[tuple[int, ...]], chosen: Settings) -> list[str]:
        """A batch of texts. Rows that are missing repeat the first."""
        rows = prompts + prompts[:1] * (self.batch_size - len(prompts))
        lengths_B = np.array([len(row) for row in rows], np.int32)
        tokens_BT = np.zeros((len(rows), min(rounded(int(lengths_B.max())), self.max_length)), np.int32)
        for b, row in enumerate(rows):
            tokens_BT[b, : len(row)] = row
        self._drawn += 1
        pieces = in_pieces(
            self.lm, self.params, tokens_BT, chosen.max_tokens, prompt_lengths=lengths_B, temperature=chosen.temperature,
            key=jax.random.fold_in(self._key, self._drawn), eos=self.tokenizer.ends, policy=self.policy, **dict(chosen.filters),
        )  # fmt: skip
        new: list[list[int]] = [[] for _ in prompts]
        for piece in pieces:
            for row, more in zip(new, np.asarray(piece).tolist(), strict=False):
                row += more
            texts, over = zip(*(self._ended(row, chosen.stops) for row in new), strict=True)
            if all(over):
                break
        return list(texts)

    def _ended(self, ids: list[int], stops: tuple[str, ...]) -> tuple[str, bool]:
        """(the text up to what ends it, whether anything does)."""
        end = next((n for n, i in enumerate(ids) if i in self.tokenizer.ends), len(ids))
        whole = text = self.tokenizer.answer(ids[:end])
        for stop in stops:
            text = text.split(stop)[0]
        return text, end < len(ids) or text != whole


def _windows(tokens: Sequence[int], prefix: int, size: int) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) pairs that score each token once, after as many tokens as `size` lets the last one have."""
    pairs = [([prefix], list(tokens[:size]))] if tokens else []
    for start in range(size, len(tokens), size):
        end = min(start + size, len(tokens))
        pairs.append((list(tokens[end - size - 1 : start]), list(tokens[start:end])))
    return pairs


def _package():
    """lm-eval. Raises UserError where it is not installed."""
    try:
        import lm_eval.api.model
        import lm_eval.api.registry
    except ModuleNotFoundError as error:
        raise UserError(f"lm-eval cannot be used, {error}: pip install 'jaxeff[lm_eval]'") from None
    return lm_eval


@functools.cache
def register(load: Callable[..., Evaluator]):
    """The class that lm-eval knows as "jaxeff" from now on; load: the `--model_args` as keywords -> Evaluator.

    Raises UserError where lm-eval is not installed.
    """
    package = _package()

    @package.api.registry.register_model("jaxeff")
    class Jaxeff(package.api.model.LM):
        """An Evaluator as lm-eval's LM. What decides on devices is JAX's own."""

        def __init__(self, model: str, batch_size: int | str = 8, max_batch_size=None, device=None, **options):
            super().__init__()
            self.evaluator = load(model, batch_size=8 if batch_size == "auto" else int(batch_size), **options)

        def loglikelihood(self, requests):
            return self.evaluator.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests):
            return self.evaluator.loglikelihood_rolling([request.args[0] for request in requests])

        def generate_until(self, requests):
            return self.evaluator.generate_until([request.args for request in requests])

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return self.evaluator.rendered(chat_history, add_generation_prompt)

        def chat_template(self, chat_template=False):
            return self.evaluator.template if chat_template else None

        @property
        def tokenizer_name(self):
            return self.evaluator.identity

    return Jaxeff


def table(tasks: str, include_path: str | None, **arguments) -> str:
    """lm-eval's table of scores. tasks: names with commas between; include_path: a folder with tasks of one's own; arguments:
    those of `load`, which has been registered.

    Raises UserError for tasks that nobody knows, and where lm-eval is not installed.
    """
    package = _package()
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include-path {include_path}: no such folder")
    manager = TaskManager(include_path=include_path)
    names = tasks.split(",")
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(f"no task of lm-eval is called {name!r}; {nearest(name, manager.all_tasks)}")
    found = package.simple_evaluate(model="jaxeff", model_args=arguments, tasks=names, task_manager=manager)
    return make_table(found).rstrip()
