"""The page stands alone, says what it should, and can be read without eyes; the table fits the terminal."""

import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from jaxeff.core.errors import UserError
from jaxeff.lab import plots, report, table
from jaxeff.lab.columns import BINARY, SI, binary, columns, interval_text, one_unit, si
from jaxeff.lab.record import record
from jaxeff.lab.results import Results
from jaxeff.lab.statistics import mean_interval
from tests.lab.made_up import NAMES, made_up

VOID = {"meta", "br", "path", "use", "rect", "polygon"}


class Outline(HTMLParser):
    """Tags with attributes, and the check that they nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="module")
def page():
    return report.page(made_up())


def test_the_page_is_self_contained_and_well_formed(page):
    outline = Outline(page)
    assert not outline.open
    assert not outline.all("script") and not outline.all("link") and not outline.all("img")
    assert all(not attrs.get("src") for _, attrs in outline.tags)
    links = [v for _, attrs in outline.tags for k, v in attrs.items() if k.endswith("href")]
    assert all(link.startswith("#") or not re.match(r"\w+:|/", link) for link in links)
    assert "@import" not in page and "url(http" not in page


def test_identifiers_are_unique_and_all_references_resolve(page):
    ids = [attrs["id"] for _, attrs in Outline(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    references = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    references += [name for value in re.findall(r'aria-labelledby="([^"]+)"', page) for name in value.split()]
    assert set(references) <= set(ids)


def test_the_page_can_be_heard(page):
    outline = Outline(page)
    assert outline.all("html")[0]["lang"] == "en"
    plots = [svg for svg in outline.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(plots) == 8 and all(p["role"] == "img" and p["aria-labelledby"] for p in plots)
    assert len(outline.all("desc")) == 8 and len(outline.all("figcaption")) == 3
    assert len(outline.all("caption")) == len(outline.all("table"))
    assert all(th.get("scope") in ("col", "row") for th in outline.all("th"))
    assert len(outline.all("h1")) == 1
    assert "mqa 2.1" in page, "a plot's description tells its numbers"


def test_the_page_escapes_and_says_the_method(page):
    assert "Nothing &lt;was&gt; trained." in page and "Mixer&lt;0&gt;" in page
    for word in ("within 1%", "Student", "test split was read once", "0.001, 0.003, 0.01", "ab" * 32, "--only mqa"):
        assert word in page


def test_a_task_without_documents_has_no_words_on_them(page):
    drawn = report.page(dataclasses.replace(made_up(), corpus={"fingerprint": "ab" * 32}))
    assert "tokenizer was trained" in page and "tokenizer was trained" not in drawn


def test_findings_claim_no_more_than_the_intervals():
    same = made_up()
    assert "Worse than mha by more than seeds explain: mqa" in report.finding(same)
    single = made_up(seeds=(0,))
    assert "explain" not in report.finding(single)
    assert "Not finished" in report.finding(made_up(missing=("gqa",)))


def test_a_record_is_a_readme_with_the_table_and_its_plots(tmp_path):
    workdir, folder = tmp_path / "run", tmp_path / "experiments" / "made_up"
    with pytest.raises(UserError, match="run has no results.json"):
        record(workdir, folder)
    workdir.mkdir()
    results = made_up()
    (workdir / "results.json").write_text(results.to_json())
    text = record(workdir, folder).read_text()
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [line[0].strip("| ") for line in lines] == ["model", "---", *NAMES]
    assert len({len(line) for line in lines}) == 1 and interval_text(results.rows[1].score) in lines[3]
    assert results.command in text and "- Worse than mha by more than seeds explain: mqa" in text
    for name in re.findall(r"\]\((\w+\.svg)\)", text):
        assert not Outline((folder / name).read_text()).open
    assert len(list(folder.glob("*.svg"))) == 2
    with pytest.raises(UserError, match="README.md is there already"):
        record(workdir, folder)
    (workdir / "results.json").write_text(made_up(missing=("gqa",)).to_json())
    with pytest.raises(UserError, match="not finished: gqa"):
        record(workdir, tmp_path / "other")
    (workdir / "results.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="cannot be read as results"):
        record(workdir, tmp_path / "other")


@pytest.mark.parametrize("names", [(), ("mqa",), NAMES])
@pytest.mark.parametrize("costs", [True, False])
def test_an_unfinished_ablation_has_a_page_and_a_table_too(names, costs):
    results = made_up(names=names, seeds=(0,), costs=costs, missing=tuple(set(NAMES) - set(names)))
    assert not Outline(report.page(results)).open
    table.show(results, Console(file=io.StringIO()))


def test_results_survive_json():
    results = made_up()
    text = results.to_json()
    assert Results.from_json(text) == results
    assert '"difference"' in text and '"score"' in text


@pytest.mark.parametrize("width", [80, 170])
def test_the_table_shows_every_number_on_the_terminal(width):
    out = io.StringIO()
    results = made_up()
    table.show(results, Console(file=out, width=width, force_terminal=True, color_system=None))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "\u2026" not in text, "nothing is cut off"
    for row in results.rows:
        for column in columns(results):
            assert column.cell(row, results.baseline_row) in text
    assert "0.01*" in text


def test_numbers_as_text():
    assert [si(v) for v in (1234567, 999.96, 0.5, None)] == ["1.23 M", "1.00 k", "0.5", "\u2013"]
    assert [binary(v) for v in (1536, 1 << 20, 1023 << 10, 12)] == ["1.5 KiB", "1 MiB", "1023 KiB", "12 B"]
    assert one_unit([1_000_000, 2_345_678, None], SI) == (1e6, "M", 2)
    assert one_unit([16 << 10, 2 << 20], BINARY) == (1 << 10, "KiB", 0)
    assert one_unit([1e3, 9e9], SI) == (1e6, "M", 3), "a column is no wider than its largest number needs"
    assert one_unit([None], BINARY) == (1.0, "B", 0)
    assert interval_text(mean_interval([1.0, 1.0])) == "1.000 \u00b1 0.000"
    assert interval_text(mean_interval([-1.0]), sign=True) == "\u22121.000"


def test_twenty_models_look_different():
    assert len({(plots.look(i)["color"], str(plots.look(i)["linestyle"]), plots.marker(i)) for i in range(20)}) == 20
    assert len({(plots.look(i)["color"], str(plots.look(i)["linestyle"])) for i in range(20)}) == 20
