"""The files beside a report hold the same numbers, for every model."""

import csv
import io
import re

import pytest

from jaxeff.core.errors import UserError
from jaxeff.lab import figures, report, take_along
from jaxeff.lab.columns import columns
from jaxeff.lab.plots import files
from tests.lab.made_up import NAMES, made_up

MANY = (*NAMES, *(f"other_{i}" for i in range(13)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("report")
    report.write(made_up(), where / "report.html")
    return where


def test_every_figure_is_there_as_svg_and_as_pdf(folder):
    page = (folder / "report.html").read_text()
    assert page.count("<figure>") == 3
    for name in ("loss", "cost", "decode"):
        text = (folder / "figures" / f"{name}.svg").read_text()
        assert text.startswith("<svg") and "mqa</text>" in text and "background:#fff" in text
        assert "var(" not in text and "inherit" not in text, "programs that draw know no style sheet of ours"
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_links_to_all_files_and_to_no_other(folder):
    links = set(re.findall(r' href="([^"#]+)"', (folder / "report.html").read_text()))
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert links - {"results.json"} == found - {"report.html"}


def test_a_figure_is_the_same_bytes_twice(folder):
    plot = next(plot for plot in figures.plots(made_up()) if plot.name == "loss")
    for name, body in files(plot).items():
        assert (folder / "figures" / name).read_bytes() == body


def test_the_numbers_are_those_of_results_json():
    results = made_up(names=MANY)
    lines = list(csv.DictReader(io.StringIO(take_along.numbers(results))))
    assert [line["model"] for line in lines] == list(MANY)
    for line, row in zip(lines, results.rows, strict=True):
        assert float(line["test_bits_per_byte"]) == row.score.mean and float(line["test_low_95"]) == row.score.low
        assert {s: float(line[f"test_seed_{s}"]) for s in row.test} == row.test
        assert {lr: float(line[f"validation_at_lr_{lr}"]) for lr in row.sweep} == row.sweep
        assert (int(line["parameters"]), float(line["best_lr"])) == (row.n_parameters, row.best_lr)
        assert (line["varied"] and int(line["varied"])) == (row.varied or "")
        assert float(line["tokens_per_s"]) == row.tokens_per_s and int(line["memory_bytes"]) == row.memory_bytes
        for d in row.decode:
            assert float(line[f"token_s_at_{d.context}"]) == d.token_s
            assert float(line[f"first_token_s_at_{d.context}"]) == d.first_token_s
            assert float(line[f"token_s_at_{d.context}_highest"]) == d.token_ends[1]
            assert int(line[f"state_bytes_at_{d.context}"]) == d.state_bytes
    gap = results.rows[1].difference(results.baseline_row)
    assert (lines[0]["difference"], float(lines[1]["difference_high_95"])) == ("", gap.high)


def test_what_is_not_known_is_an_empty_cell():
    results = made_up(seeds=(0,), costs=False)
    line = next(csv.DictReader(io.StringIO(take_along.numbers(results))))
    assert line["test_low_95"] == line["tokens_per_s"] == line["memory_bytes"] == ""
    assert take_along.numbers(made_up(names=())) == "model\n"


def test_the_tables_have_all_models_and_columns():
    results = made_up(names=MANY)
    lines = take_along.markdown(results).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines] == ["model", "---", *MANY]
    assert {line.count(" | ") for line in lines} == {len(columns(results))}

    text = take_along.latex(results)
    rows = [line[4:].removesuffix(r" \\").split(" & ") for line in text.splitlines() if " & " in line]
    quality, cost = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    for table in (quality, cost):
        assert [row[0] for row in table[2:]] == [name.replace("_", r"\_") for name in MANY]
        assert {len(row) for row in table} == {len(table[0])}
    assert len(quality[0]) + len(cost[0]) - 2 == len(columns(results))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2 and r"\textbf{2.0" in text
    assert text.isascii() and not re.search(r"(?<!\\)[_#]", text.replace(r"\label{tab:made-up", ""))


def test_one_seed_has_no_intervals_in_latex():
    text = take_along.latex(made_up(seeds=(0,)))
    assert "95" not in text and "pm" not in text and "One seed" in text


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(UserError, match="cannot write to .*figures"):
        take_along.write(made_up(), figures.plots(made_up())[:1], tmp_path)
