"""What an ablation found: one `Row` per model, read from and written to results.json."""

import dataclasses
import json
from typing import Any

from jaxeff.lab.statistics import Comparison, Interval, holm, mean_interval, paired_interval, paired_p
from jaxeff.objectives.base import Score

FORMAT = 2
Ends = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Decode:
    """Decoding one sequence after a prompt of `context` tokens: seconds to the first token and per further token; bytes kept.

    The ends are the lowest and the highest of the rounds whose median the seconds are, None where they were not kept.
    """

    context: int
    first_token_s: float
    token_s: float
    state_bytes: int
    first_token_ends: Ends | None = None
    token_ends: Ends | None = None

    @classmethod
    def from_plain(cls, entry: dict[str, Any]) -> "Decode":
        """Of what JSON holds."""
        ends = {name: _ends(entry.get(name)) for name in ("first_token_ends", "token_ends")}
        return cls(**entry | ends)


@dataclasses.dataclass(frozen=True)
class Row:
    """One model: what it is, how good it is for each seed, and what it costs. Costs are None where the backend does not tell.

    built: what differs from the other models. n_parameters: those that train. varied: the value of the field that sizes are
    matched by, None where sizes are not matched and where a model has several values or none. sweep: learning rate -> score on the
    validation split for every rate tried, None where training diverged; empty where there was one rate. test: seed -> score on the
    test split; others: name -> seed -> the same on other data. curves: seed -> (steps, training loss). tokens_per_s_ends: the
    lowest and the highest of the rounds. memory_bytes: what one training step needs beside the parameters, optimizer state and
    batch.
    """

    name: str
    built: str
    n_parameters: int
    varied: int | None
    best_lr: float
    sweep: dict[float, float | None]
    test: dict[int, float]
    curves: dict[int, tuple[list[int], list[float]]]
    tokens_per_s: float | None = None
    flops_per_token: float | None = None
    decode: tuple[Decode, ...] = ()
    memory_bytes: int | None = None
    reproduce: str = ""
    tokens_per_s_ends: Ends | None = None
    others: dict[str, dict[int, float]] = dataclasses.field(default_factory=dict)

    @property
    def score(self) -> Interval:
        """Mean over the seeds."""
        return mean_interval(self.test.values())

    def score_on(self, name: str) -> Interval:
        """Mean over the seeds on the test split of other data."""
        return mean_interval(self.others[name].values())

    def difference(self, baseline: "Row | None") -> Interval | None:
        """Mean over the shared seeds of this row's score less the baseline's; None for the baseline itself."""
        return None if baseline is None or baseline.name == self.name else paired_interval(self.test, baseline.test)

    @property
    def lr_at_edge(self) -> bool:
        """Whether the best learning rate is the smallest or largest of several tried: a better one may lie beyond."""
        return len(self.sweep) > 1 and self.best_lr in (min(self.sweep), max(self.sweep))


@dataclasses.dataclass(frozen=True)
class Results:
    """All finished rows of an ablation, in its order, and the circumstances. `baseline` names the first model of the ablation,
    which may not be among the rows yet; `missing` lists the models without a row. score_name: what models are judged by. finished:
    when the last run was, in UTC as ISO 8601 writes it, None where that was not kept."""

    name: str
    description: str
    rows: tuple[Row, ...]
    baseline: str
    score_name: str = "bits_per_byte"
    higher_is_better: bool = False
    missing: tuple[str, ...] = ()
    protocol: dict[str, Any] = dataclasses.field(default_factory=dict)
    corpus: dict[str, Any] = dataclasses.field(default_factory=dict)
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""
    seconds: float | None = None
    finished: str | None = None

    @property
    def score(self) -> Score:
        """What decides, with its direction."""
        return Score(self.score_name, self.higher_is_better)

    @property
    def others(self) -> tuple[str, ...]:
        """The names of other data that rows are scored on."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.others))

    @property
    def score_words(self) -> str:
        """The score's name in words."""
        return self.score_name.replace("_", " ")

    @property
    def best_row(self) -> Row | None:
        """The row with the best mean; None without rows."""
        return min(self.rows, key=lambda row: self.score.badness(row.score.mean), default=None)

    @property
    def baseline_row(self) -> Row | None:
        """The row that differences are taken to, when it is finished."""
        return next((row for row in self.rows if row.name == self.baseline), None)

    @property
    def n_comparisons(self) -> int:
        """Models other than the baseline. Those that are not finished count, so that a claim made before they are stands after."""
        return len(({row.name for row in self.rows} | set(self.missing)) - {self.baseline})

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Model -> its difference to the baseline with p-values; empty with one seed, which shows no spread."""
        base = self.baseline_row
        rows = [row for row in self.rows if base is not None and row is not base]
        found = {row.name: p for row in rows if (p := paired_p(row.test, base.test)) is not None}
        corrected = holm(found, self.n_comparisons)
        gaps = {row.name: row.difference(base) for row in rows}
        return {name: Comparison(gaps[name], p, corrected[name]) for name, p in found.items()}

    def to_json(self) -> str:
        """JSON text with derived intervals beside the raw values, so that a reader needs no statistics."""
        body = dataclasses.asdict(self) | {"format": FORMAT}
        comparisons = self.comparisons
        for row, entry in zip(self.rows, body["rows"], strict=True):
            difference = row.difference(self.baseline_row)
            entry["score"] = dataclasses.asdict(row.score)
            entry["difference"] = difference and dataclasses.asdict(difference)
            compared = comparisons.get(row.name)
            entry["difference_p"] = compared and compared.p
            entry["difference_p_holm"] = compared and compared.p_holm
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """The inverse of `to_json`, to draw the report again. Raises ValueError for another format."""
        body = json.loads(text)
        if body.pop("format", None) != FORMAT:
            raise ValueError(f"these are no results of format {FORMAT}")
        return cls(**body | {"rows": tuple(map(_row, body["rows"])), "missing": tuple(body["missing"])})


def _ends(found) -> Ends | None:
    return None if found is None else (found[0], found[1])


def _row(entry: dict[str, Any]) -> Row:
    fields = {field.name: entry[field.name] for field in dataclasses.fields(Row) if field.name in entry}
    fields["sweep"] = {float(lr): value for lr, value in entry["sweep"].items()}
    fields["test"] = {int(seed): value for seed, value in entry["test"].items()}
    fields["curves"] = {int(seed): tuple(curve) for seed, curve in entry["curves"].items()}
    others = fields.get("others", {})
    fields["others"] = {name: {int(seed): value for seed, value in found.items()} for name, found in others.items()}
    fields["decode"] = tuple(map(Decode.from_plain, entry["decode"]))
    fields["tokens_per_s_ends"] = _ends(entry.get("tokens_per_s_ends"))
    return Row(**fields)
