"""What the models of an ablation cost, measured in turns. B batch, T time.

All programs are compiled first; then each model has its turn, round after round, so that another job on the machine slows
all of them and not one.
"""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.evaluate.decoding import Decoding
from jaxeff.evaluate.flops import flops, memory
from jaxeff.evaluate.timing import alternate, seconds
from jaxeff.train.experiment import Experiment
from jaxeff.train.step import make_step, put, start

Report = Callable[[str, int, int], None]
STEPS_PER_TURN = 3


class Training:
    """A compiled training step with its state, to be timed on one batch that is already on the device, `steps` a turn."""

    def __init__(self, experiment: Experiment, batch: Mapping[str, Any], steps: int = 1):
        self.steps = steps
        self.step = make_step(experiment)
        self.batch = put(batch, self.step.mesh)
        self.state = start(experiment, self.step)
        self.compiled = self.step.step.lower(self.state, self.batch).compile()

    def run(self) -> None:
        """One turn; blocks until its last step is done."""
        for _ in range(self.steps):
            self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def costs(self, seconds: list[float]) -> dict[str, Any]:
        """The results, given the seconds of each turn: the median, and the ends of the range."""
        found = flops(self.step.step, self.step.abstract, jax.eval_shape(lambda: self.batch))
        positions, tokens = self.batch["tokens"].size, int((self.batch["segment_ids"] > 0).sum())
        return {
            "tokens_per_s": self.steps * tokens / median(seconds),
            "tokens_per_s_ends": [self.steps * tokens / max(seconds), self.steps * tokens / min(seconds)],
            "flops_per_token": found["total"] / positions,
            "matmul_flops_per_token": found["matmul"] / positions,
            "uncounted": found["uncounted"],
            "memory": memory(self.compiled),
        }


def measure(
    experiments: Mapping[str, Experiment],
    batches: Mapping[str, Mapping[str, Any]],
    contexts: tuple[int, ...],
    n_tokens: int,
    rounds: int,
    report: Report = lambda stage, done, total: None,
) -> dict[str, dict[str, Any]]:
    """name -> {"tokens_per_s", "flops_per_token", "memory", "decode": [...]} for each experiment.

    batches: a training batch of each. contexts, n_tokens: where decoding is timed and over how many tokens. rounds: turns of each.
    """
    total = len(experiments) * (1 + len(contexts)) + rounds + 1
    training, decoding = {}, {}
    for name, experiment in experiments.items():
        report(f"compiling the step of {name}", len(training) + len(decoding), total)
        training[name] = Training(experiment, batches[name], STEPS_PER_TURN)
        for context in contexts:
            report(f"compiling decoding of {name} at {context}", len(training) + len(decoding), total)
            # The state is donated step by step; decoding needs weights of its own, and any will do.
            params = jax.tree.map(jnp.copy, training[name].state.weights)
            decoding[name, context] = Decoding(experiment.model, params, context, n_tokens, policy=experiment.policy)
    runs = {("step", name): job.run for name, job in training.items()}
    runs |= {("first", *where): job.first_token for where, job in decoding.items()}
    runs |= {("further", *where): job.further_tokens for where, job in decoding.items()}
    done = total - rounds - 1
    clocks = {where: lambda run=run: seconds(run) for where, run in runs.items()}
    times = alternate(clocks, rounds, on_round=lambda turn: report("timing, model after model", done + turn, total))

    def decode(name: str, context: int) -> dict[str, Any]:
        first, further = times["first", name, context], [t / n_tokens for t in times["further", name, context]]
        return {
            "context": context,
            "first_token_s": median(first),
            "token_s": median(further),
            "first_token_ends": [min(first), max(first)],
            "token_ends": [min(further), max(further)],
            "state_bytes": decoding[name, context].state_bytes,
        }

    return {
        name: job.costs(times["step", name]) | {"decode": [decode(name, context) for context in contexts]}
        for name, job in training.items()
    }
