"""Running an ablation: sweep, seeds, costs, report; what is finished already is not done again.

    results = run(load("configs/ablations/quickstart.py"), "runs/quickstart")

Models are the outer loop: runs that differ only in learning rate, seed and length share one compiled step.
"""

import dataclasses
import json
import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxeff.core.errors import UserError
from jaxeff.core.files import write_text
from jaxeff.core.tree import paths
from jaxeff.data import Prepared
from jaxeff.data.cache import digest
from jaxeff.lab import report as page
from jaxeff.lab.ablation import Ablation, describe
from jaxeff.lab.matching import held
from jaxeff.lab.measure import measure
from jaxeff.lab.progress import Progress
from jaxeff.lab.results import Decode, Results, Row
from jaxeff.lab.sweep import best, beyond
from jaxeff.lab.training import Part, train
from jaxeff.lab.units import Units
from jaxeff.train.circumstances import git, machine, versions
from jaxeff.train.config_json import to_json
from jaxeff.train.experiment import Experiment
from jaxeff.train.optim import Optim
from jaxeff.train.workdir import locked

# Statistics of the data that say nothing about its content, or say it twice.
OWN = ("fingerprint", "corpus_fingerprint", "seconds", "records", "tokenizer")
BASES = "bases"  # the folder of runs that others start from

Train = Callable[[Part, Path, Prepared, Progress], dict[str, Any]]


@dataclasses.dataclass
class Job:
    """An ablation under way in one folder."""

    ablation: Ablation
    prepared: dict[str, Prepared]
    units: Units
    progress: Progress = dataclasses.field(default_factory=Progress)
    train: Train = train
    others: tuple[tuple[str, Prepared], ...] = ()
    known: dict[tuple, Part] = dataclasses.field(
        default_factory=dict
    )  # parts asked for, as matching sizes takes its time

    def sweep(self, model: str) -> dict[float, Part]:
        """Rate -> its short run: the ablation's, and those beyond an end that finished ones ask for; none with one rate."""
        lrs, parts = self.ablation.rates(model), {}
        if len(lrs) == 1:
            return parts
        for lr in lrs:
            parts[lr] = self._short(model, lr)
        while len(parts) < len(lrs) + self.ablation.widen and (more := self._beyond(parts)) is not None:
            parts[more] = self._short(model, more)
        return parts

    def _short(self, model: str, lr: float) -> Part:
        return self._part(model, f"lr-{lr}", lr, self.ablation.seeds[0], "validation")

    def _beyond(self, parts: dict[float, Part]) -> float | None:
        found = self._scores(parts)
        return None if found is None else beyond(found, self.ablation.base.objective.score.badness)

    def _scores(self, parts: dict[float, Part]) -> dict[float, float | None] | None:
        """Rate -> validation score, in the order of the rates; None while a run is missing."""
        found = {lr: self.get(parts[lr]) for lr in sorted(parts)}
        return None if None in found.values() else {lr: part["score"] for lr, part in found.items()}

    def ensure_sweep(self, model: str) -> None:
        """Do the short runs of a model, and the further ones that they ask for."""
        known = self.sweep(model)
        for part in known.values():
            self.ensure(part)
        while more := {lr: part for lr, part in self.sweep(model).items() if lr not in known}:
            for part in more.values():
                self.progress.grow(part)
            for part in more.values():
                self.ensure(part)
            known |= more

    def finals(self, model: str, lr: float) -> list[Part]:
        """The runs whose numbers are reported."""
        return [self._part(model, f"seed-{seed}", lr, seed, "test") for seed in self.ablation.seeds]

    def _part(self, model: str, name: str, lr: float, seed: int, split: str) -> Part:
        asked = model, name, lr, seed, split
        if asked not in self.known:
            others = self.others if split == "test" else ()
            experiment = self.ablation.experiment(model, lr, seed, sweep=split == "validation")
            self.known[asked] = Part(model, name, experiment, split, others)
        return self.known[asked]

    def bases(self) -> list[Part]:
        """The runs that others start from."""
        return [Part(f"{BASES}/{name}", "run", e, "test") for name, e in self.ablation.bases]

    def best_lr(self, model: str) -> float | None:
        """The rate with the best validation score, see `jaxeff.lab.sweep.best`; None before the sweep is finished.

        Raises UserError when training diverged at every rate.
        """
        if len(self.ablation.rates(model)) == 1:
            return self.ablation.rates(model)[0]
        found = self.swept(model)
        if found is None:
            return None
        chosen = best(found, self.ablation.base.objective.score.badness)
        if chosen is None:
            raise UserError(
                f"model {model!r} diverged at every learning rate of the sweep: {', '.join(map(str, found))}"
            )
        return chosen

    def swept(self, model: str) -> dict[float, float | None] | None:
        """Rate -> validation score, None where training diverged; None before the sweep is finished."""
        return self._scores(self.sweep(model))

    def get(self, part: Part) -> dict[str, Any] | None:
        """The result of a finished part."""
        return self.units.get(part.model, part.name, self._key(part))

    def _key(self, part: Part) -> str:
        base = [self._key(other) for other in self.bases() if other.model == f"{BASES}/{part.experiment.base}"]
        others = [(name, prepared.fingerprint) for name, prepared in part.others]
        more = [base, others] if base or others else []
        return digest(to_json(part.experiment), self.prepared[part.model].fingerprint, part.split, *more)

    def _placed(self, part: Part) -> Part:
        """The part with the folder of its base in place of its name."""
        name = part.experiment.base
        if name not in dict(self.ablation.bases):
            return part
        folder = str(self.units.run_dir(f"{BASES}/{name}", "run"))
        return dataclasses.replace(part, experiment=dataclasses.replace(part.experiment, base=folder))

    def ensure(self, part: Part) -> None:
        """Do the part unless it is finished."""
        if self.get(part) is not None:
            self.progress.skip(part)
            return
        self.progress.begin(part)
        # The rows are the same at every seed, their order is not.
        prepared = self.prepared[part.model].reseeded(part.experiment.data.seed)
        result = self.train(self._placed(part), self.units.run_dir(part.model, part.name), prepared, self.progress)
        if part.split == "test" and result["score"] is None:
            raise UserError(
                f"model {part.model!r}, {part.name}: training diverged at lr={part.experiment.optim.lr:g}, which the sweep chose"
            )
        self.units.put(part.model, part.name, self._key(part), to_json(part.experiment), result)
        self.progress.end(part, result)

    def costs(self, model: str) -> dict[str, Any] | None:
        """The measured costs of a model, None before."""
        return self.units.get(model, "cost", self._cost_key(model))

    def _cost_experiment(self, model: str) -> Experiment:
        return self.ablation.experiment(model, self.ablation.rates(model)[0], self.ablation.seeds[0])

    def _cost_key(self, model: str) -> str:
        a = self.ablation
        return digest(
            to_json(self._cost_experiment(model)),
            self.prepared[model].fingerprint,
            a.contexts,
            a.decode_tokens,
            a.timing_rounds,
        )

    def ensure_costs(self, models: tuple[str, ...]) -> None:
        """Measure the costs of those models of which they are missing."""
        missing = {model: self._cost_experiment(model) for model in models if self.costs(model) is None}
        if not missing:
            return
        a, batches = self.ablation, {model: self.prepared[model].first() for model in missing}
        found = measure(missing, batches, a.contexts, a.decode_tokens, a.timing_rounds, self.progress.costs)
        for model, costs in found.items():
            self.units.put(model, "cost", self._cost_key(model), to_json(missing[model]), costs)

    def row(self, model: str, reproduce: str) -> Row | None:
        """The finished row of a model, costs left open where they are not measured; None before all its runs are finished."""
        lr = self.best_lr(model)
        parts = (
            {} if lr is None else {seed: self.get(p) for seed, p in zip(self.ablation.seeds, self.finals(model, lr))}
        )
        if not parts or None in parts.values():
            return None
        (built, _), costs = self.ablation.matched(model), self.costs(model) or {}
        return Row(
            name=model,
            built=self.ablation.words(model),
            n_parameters=sum(x.size for path, x in paths(built.specs).items() if built.weights.trains(path)),
            varied=held(built, self.ablation.vary) if self.ablation.match == "parameters" else None,
            best_lr=lr,
            sweep=self.swept(model) or {},
            test={seed: part["score"] for seed, part in parts.items()},
            curves={seed: (part["steps"], part["losses"]) for seed, part in parts.items()},
            others={
                name: {seed: part["others"][name] for seed, part in parts.items()} for name, _ in self.ablation.others
            },
            tokens_per_s=costs.get("tokens_per_s"),
            flops_per_token=costs.get("flops_per_token"),
            tokens_per_s_ends=costs.get("tokens_per_s_ends") and tuple(costs["tokens_per_s_ends"]),
            decode=tuple(map(Decode.from_plain, costs.get("decode", ()))),
            memory_bytes=(costs.get("memory") or {}).get("temporary"),
            reproduce=reproduce,
        )

    def work(self, models: tuple[str, ...]) -> tuple[int, int, int, int]:
        """Number of runs as far as known, steps of all of them, models of which a run is missing, and models whose costs are."""
        known = {
            model: [*self.sweep(model).values()] + self.finals(model, self.ablation.rates(model)[0]) for model in models
        }
        parts = self.bases() + [part for found in known.values() for part in found]
        open_ = sum(self.row(model, "") is None for model in models)
        return len(parts), sum(p.steps for p in parts), open_, sum(self.costs(m) is None for m in models)

    def seconds(self) -> float:
        """Time of all finished runs."""
        return math.fsum(found["seconds"] for part in self._all() if (found := self.get(part)))

    def finished(self) -> str | None:
        """When the last of the finished runs and measurements was, in UTC as ISO 8601 writes it; None where no time was kept."""
        times = [self.units.finished(part.model, part.name, self._key(part)) for part in self._all()]
        times += [self.units.finished(model, "cost", self._cost_key(model)) for model in self.ablation.names]
        return max(filter(None, times), default=None)

    def _all(self) -> list[Part]:
        parts = self.bases()
        for model in self.ablation.names:
            lr = self.best_lr(model)
            parts += [*self.sweep(model).values()] + ([] if lr is None else self.finals(model, lr))
        return parts


def run(
    ablation: Ablation,
    workdir: str | Path,
    only: str | None = None,
    progress: Progress | None = None,
    command: str = "jaxeff ablate CONFIG",
    train: Train = train,
) -> Results:
    """Do what is missing of the ablation, or of its model `only`, in `workdir`; write results.json and report.html there.

    command: what the user typed, without --only and --workdir, for the commands that reproduce a row. train: does one part.

    Raises UserError for an unknown model, sizes that cannot be matched, a workdir of another ablation, and bad data.
    """
    models, progress, begun = ablation.select(only), progress or Progress(), time.perf_counter()
    for name in ablation.names:
        ablation.matched(name)
    prepared = prepare(ablation, progress)
    others = tuple((name, data.prepare(report=progress.stage)) for name, data in ablation.others)
    with locked(Path(workdir)):
        job = Job(ablation, prepared, Units(workdir, identity(ablation, prepared)), progress, train, others)
        with progress.running(*job.work(models)):
            for part in job.bases():
                job.ensure(part)
            for model in models:
                job.ensure_sweep(model)
                for part in job.finals(model, job.best_lr(model)):
                    job.ensure(part)
                save(collect(job, command), workdir)
            job.ensure_costs(models)
        results = collect(job, command)
        save(results, workdir)
        page.write(results, Path(workdir) / "report.html")
    progress.say(f"finished in {time.perf_counter() - begun:.0f} s")
    return results


def prepare(ablation: Ablation, progress: Progress) -> dict[str, Prepared]:
    """The data of each variant; equal data are prepared once. Raises UserError where a split that the protocol needs is lacking."""
    found: dict[Any, Prepared] = {}
    variants = {}
    wanted = {name: ablation.matched(name)[0].data for name in ablation.names}
    wanted |= {f"{BASES}/{name}": e.data for name, e in ablation.bases}
    for name, data in wanted.items():
        if data not in found:
            found[data] = data.prepare(report=progress.stage)
        variants[name] = found[data]
        lacking = [split for split in ("validation", "test") if split not in found[data].splits]
        if lacking:
            raise UserError(
                f"ablation {ablation.name!r} needs a validation split, to choose learning rates, and a test split: "
                f"the data of {name!r} have no {' and no '.join(lacking)} split"
            )
    return variants


def identity(ablation: Ablation, prepared: dict[str, Prepared]) -> dict[str, Any]:
    """What a folder of results is for; the description may change."""
    fingerprint = {name: p.fingerprint for name, p in prepared.items()}
    plain = to_json(dataclasses.replace(ablation, description=""))
    return json.loads(
        json.dumps({"ablation": plain, "corpus": fingerprint, "versions": versions(), "device": machine()["device"]})
    )


def collect(job: Job, command: str) -> Results:
    """Everything that is finished, with the circumstances."""
    a = job.ablation
    prefix = f"{a.environment} {command}".strip()
    folder = job.units.workdir

    def reproduce(model: str) -> str:
        return f"{prefix} --only {model} --workdir {shlex.quote(f'{folder}-{model}')}"

    rows = {model: job.row(model, reproduce(model)) for model in a.names}
    prepared = job.prepared[a.baseline]
    return Results(
        name=a.name,
        description=a.description,
        rows=tuple(row for row in rows.values() if row),
        baseline=a.baseline,
        score_name=a.base.objective.score.name,
        higher_is_better=a.base.objective.score.higher_is_better,
        missing=tuple(name for name, row in rows.items() if row is None),
        protocol={
            "seeds": list(a.seeds),
            "lrs": sorted({lr for name in a.names for lr in a.rates(name)}),
            "own_lrs": any(variant.lrs is not None for variant in a.variants),
            "bases": [name for name, _ in a.bases],
            "widen": a.widen,
            "sweep_steps": a.sweep_steps,
            "sweep_seed": a.seeds[0],
            "steps": a.base.train.steps,
            "tolerance": a.tolerance if a.match == "parameters" else None,
            "vary": a.vary,
            "optimizer": describe(dataclasses.replace(a.base.optim, lr=Optim.lr)),
            "batch": [a.base.data.batch_size, a.base.data.seq_len],
            "eval_batches": a.base.train.eval_batches,
        },
        corpus={"fingerprint": prepared.fingerprint} | {k: v for k, v in prepared.statistics.items() if k not in OWN},
        machine=machine(),
        versions=versions() | commit(),
        command=f"{prefix} --workdir {shlex.quote(str(folder))}",
        seconds=job.seconds(),
        finished=job.finished(),
    )


def commit() -> dict[str, str]:
    """The commit of the working folder, where it is a repository."""
    found = git()
    return {} if found is None else {"commit": found["commit"] + (", with changes" if found["changed"] else "")}


def save(results: Results, workdir: str | Path) -> None:
    """Write results.json."""
    write_text(Path(workdir) / "results.json", results.to_json())
