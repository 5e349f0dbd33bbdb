"""`jaxeff eval --tasks` with lm-eval itself, against what lm_eval.json in the folder given has of its own model's scores.

Run by the Python that has jaxeff, from the root of the repository; lm-eval is found where the second argument, the folder of
.venv-bench, has it.
"""

import contextlib
import io
import json
import os
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
os.environ |= {"HF_HOME": str(ROOT / ".cache/huggingface"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
sys.path.insert(0, str(ROOT))
sys.path.append(sysconfig.get_path("purelib", vars={"base": sys.argv[2]}))  # the last: jaxeff's own packages come first

from jaxeff.cli import main  # noqa: E402  (the lines above come first)
from tests.golden.lm_eval_case import NAMES, TASKS, write  # noqa: E402

RELATIVE = 1e-3  # of perplexities; accuracies are the same


def table(words: list[str]) -> dict[tuple[str, str], float]:
    """(task, metric) -> score, of what the command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(words) == 0
    found, task = {}, ""
    for line in said.getvalue().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 7 and cells[0] != "Tasks" and not cells[7].startswith("-"):
            task = cells[0] or task
            found[task, cells[4]] = float(cells[6])
    return found


def check() -> None:
    golden = json.loads((Path(sys.argv[1]) / "lm_eval.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), golden["seed"])
        found = table(["eval", "--model", f"hf:{folder}", "--tasks", ",".join(NAMES), "--include-path", str(TASKS)])
    for task in NAMES:
        for name, wanted in golden["scores"][task].items():
            got, digits = found[task, name.removesuffix(",none")], 5e-5  # the table has four of them
            assert abs(got - wanted) <= digits + RELATIVE * wanted * (task == "jaxeff_text"), (task, name, got, wanted)
    print(f"lm-eval's tasks: {len(found)} scores as its own model's")


if __name__ == "__main__":
    check()
