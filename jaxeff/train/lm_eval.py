"""lm-eval's model "jaxeff": who imports this file registers it. Its `model` is a run's folder or `hf:DIR`.

See `jaxeff.evaluate.lm_eval`.
"""

from jaxeff.core.errors import UserError
from jaxeff.core.precision import POLICIES
from jaxeff.evaluate.lm_eval import Evaluator, register
from jaxeff.train.progress import Silent
from jaxeff.train.public import folder_of, speaker
from jaxeff.train.trained import load_trained


def load(model: str, *, any_base: bool = False, **options) -> Evaluator:
    """Answers by a run or a public checkpoint. options: of the Evaluator.

    Raises UserError where it cannot be read, or reads no text.
    """
    if folder_of(model) is not None:
        lm, weights, tokenizer = speaker(model)
        return Evaluator(lm, weights, tokenizer, policy=POLICIES["float32"], **options)
    run = load_trained(model, Silent(), any_base)
    tokenizer = getattr(run.prepared, "tokenizer", None)
    if tokenizer is None:
        raise UserError(
            f"{model} was trained on {type(run.experiment.data).__name__}, not on text: lm-eval asks in text"
        )
    return Evaluator(run.experiment.model, run.weights, tokenizer, policy=run.experiment.policy, **options)


register(load)
