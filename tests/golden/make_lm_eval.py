"""What lm-eval's own Hugging Face model answers to the tasks in lm_eval/, and their scores, into lm_eval.json: `requests`, each
with kind, task, document, arguments and answer; `scores` by task and metric; `chat`, a conversation as text, to be answered and
unfinished.

The first argument is another folder, the second the seed of the weights. Run from the root of the repository.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
os.environ |= {"HF_HOME": str(ROOT / ".cache/huggingface"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
sys.path.insert(0, str(ROOT))

import lm_eval  # noqa: E402  (the lines above come first)
import torch  # noqa: E402
import transformers  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from tests.golden.lm_eval_case import CHAT, NAMES, TASKS, write  # noqa: E402

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 0
KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


class Recorded(HFLM):
    """One that keeps what was asked and answered."""

    def keep(self, kind, requests, answers):
        for request, answer in zip(requests, answers, strict=True):
            self.kept.append(
                {"kind": kind, "task": request.task_name, "doc": request.doc_id, "args": request.args, "answer": answer}
            )
        return answers

    def loglikelihood(self, requests, **how):
        return self.keep("loglikelihood", requests, super().loglikelihood(requests, **how))

    def loglikelihood_rolling(self, requests, **how):
        return self.keep("loglikelihood_rolling", requests, super().loglikelihood_rolling(requests, **how))

    def generate_until(self, requests, **how):
        return self.keep("generate_until", requests, super().generate_until(requests, **how))


def main():
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), SEED)
        # Requests one by one: in a batch, a first context that spells out <s> takes it from all others. No cache of logits: of two
        # windows that read the same and score other parts of it, the shorter is given the numbers of the wrong places.
        model = Recorded(pretrained=folder, device="cpu", dtype="float32", batch_size=1, logits_cache=False)
    model.kept = []
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=list(NAMES), task_manager=manager, bootstrap_iters=0)
    scores = {
        task: {name: value for name, value in metrics.items() if isinstance(value, float)}
        for task, metrics in found["results"].items()
    }
    golden = {
        "versions": {each.__name__: each.__version__ for each in (torch, transformers, lm_eval)},
        "seed": SEED,
        "requests": model.kept,
        "scores": scores,
        "chat": [model.apply_chat_template(CHAT[:2]), model.apply_chat_template(CHAT, add_generation_prompt=False)],
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "lm_eval.json").write_text(json.dumps(golden, indent=0, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
