"""The protocol of an ablation in words, for its report."""

import html

from jaxeff.lab.columns import n_seeds
from jaxeff.lab.results import Results
from jaxeff.lab.statistics import METHOD

SIZE = """
Every model has the parameter count of {baseline} within {tolerance:.0%}: the fields {vary} are solved for, all else is as
declared. Counts come from the declared parameters."""

UNMATCHED = """
Sizes were not matched: models may differ in their number of parameters."""

DATA = """
All models read the same batches in the same order at one seed."""

TEXT = """
A document's split is decided by a hash of its text, and the tokenizer was trained on the training split alone. Bits per byte,
where it is the score, counts the bytes of text that the predicted tokens stand for, so it does not depend on the tokenizer's
vocabulary."""

TRAINING = """
Unless a row says otherwise, models are trained by {optimizer} on batches of {rows} rows of {tokens} tokens; only the learning
rate is chosen for each."""

RATE = """
Each model was trained for {sweep_steps} steps at each of {lrs}{own} (seed {sweep_seed}), each time with the whole schedule; the
rate with the best {score} on the validation split{part} was kept, of equal ones one inside the sweep.{widened}{single} A best
rate at an end of the sweep is marked *: a better one may lie beyond."""

WIDENED = """ Sweeps may widen: where the best rate lay at an end, the next one beyond it, by the ratio of the last two, was tried
too, and so on until the best one lay inside, at most {widen} more for each model."""

FIXED = """
Models were trained at {lrs}{own}; no rate was chosen by a sweep."""

BASES = """
Models start from runs that were trained once, before all else: {bases}. How far other ones would lie is not known."""

SEEDS = """
Each model was then trained for {steps} steps from {seeds}; a seed sets the initial values and the order of the data. The
test split was read once, after the last step of each of these runs, and decided nothing."""

INTERVALS = """
{interval}. Differences are taken seed by seed before averaging, since models at one seed share the order of the data. The
intervals cover seeds, not the choice of the corpus or of the sizes.{claims}"""

CLAIM = """ The difference to {baseline} is claimed where the p of the paired t test, two-sided, is below 0.05: where the interval
leaves out zero."""

CLAIMS = """ Each stands for itself, not corrected for comparing several models. What is claimed is corrected: of the {n} p-values
of the paired t tests against {baseline}, two-sided, the k-th smallest is multiplied by {n} - k + 1 and never less than the one
before (Holm 1979), and a difference is claimed below 0.05, so that the chance of any false claim is at most 5 %. A model that is
not finished counts as compared."""

NO_INTERVALS = """
There are none: each model was trained from one seed, so how far another seed would lie is not known, and no difference is claimed.
Differences are taken at the same seed, since models at one seed share the order of the data."""

FLOPS = """
Counted in the traced training step, operation by operation, loops times their number of turns; a multiply-add of a matrix product
counts two. What the backward pass computes again counts; blocks that attention skips do not."""

SPEED = """
Models take turns, round after round, and the median of the rounds is shown, so that a slow moment of the machine does not fall on
one model. Compilation is left out. Decoding is greedy, one sequence, in one compiled loop."""

PARTS = {
    "Size": SIZE,
    "Data": DATA,
    "Text": TEXT,
    "Start": BASES,
    "Training": TRAINING,
    "Learning rate": RATE,
    "Seeds": SEEDS,
    "Intervals": INTERVALS,
    "FLOPs": FLOPS,
    "Speed": SPEED,
}


def _claims(results: Results) -> str:
    n = results.n_comparisons
    return (CLAIMS if n > 1 else CLAIM if n else "").format(n=n, baseline=results.baseline)


def method(results: Results) -> str:
    """The parts above with the numbers of this ablation, as an HTML list."""
    p = results.protocol
    seeds, lrs = p.get("seeds", ()), p.get("lrs", ())
    parts = PARTS if p.get("tolerance") else PARTS | {"Size": UNMATCHED}
    if (n_seeds(results) or len(seeds)) == 1:
        parts = parts | {"Intervals": NO_INTERVALS}
    if results.rows and not any(row.sweep for row in results.rows):
        parts = parts | {"Learning rate": FIXED}
    if "documents" not in results.corpus:
        parts = {name: text for name, text in parts.items() if name != "Text"}
    if not p.get("bases"):
        parts = {name: text for name, text in parts.items() if name != "Start"}
    words = {
        "baseline": results.baseline,
        "tolerance": p.get("tolerance") or 0.0,
        "sweep_steps": p.get("sweep_steps", "?"),
        "sweep_seed": p.get("sweep_seed", "?"),
        "steps": p.get("steps", "?"),
        "lrs": ", ".join(f"{lr:g}" for lr in lrs),
        "widened": WIDENED.rstrip().format(widen=p["widen"]) if p.get("widen") else "",
        "single": " Models with one rate only had no sweep." if any(not row.sweep for row in results.rows) else "",
        "own": ", of which some models had rates of their own, see every run" if p.get("own_lrs") else "",
        "bases": ", ".join(p.get("bases", ())),
        "score": results.score_words,
        "vary": p.get("vary", "?"),
        "seeds": f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        "interval": METHOD,
        "claims": _claims(results),
        "optimizer": p.get("optimizer", "?"),
        "rows": p.get("batch", "??")[0],
        "tokens": p.get("batch", "??")[1],
        "part": f" (its first {p['eval_batches']} batches)" if p.get("eval_batches") else "",
    }
    items = (f"<strong>{name}.</strong> {html.escape(text.strip().format(**words))}" for name, text in parts.items())
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"
