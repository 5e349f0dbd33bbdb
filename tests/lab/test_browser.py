"""Pages in a real browser: light and dark, on a desk, a phone and paper. Skipped where there is none."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jaxeff.core.files import write_json
from jaxeff.lab import report, run_report
from jaxeff.models import LM
from jaxeff.plan.page import page as plan_page
from jaxeff.train.config_json import to_json
from jaxeff.train.experiment import Experiment, Train
from tests.lab.test_report_whole import spread
from tests.plan.test_estimate import FOUND, TOO_LARGE

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)
DARK = "--blink-settings=preferredColorScheme=0"
MEASURE = (Path(__file__).parent / "measure.js").read_text()
PAPER = 688  # CSS pixels between the margins of A4
PAGES = ("2 models", "8 models", "16 models", "run", "plan")


def found() -> str | None:
    """The browser that JAXEFF_BROWSER names, one on PATH, or one that Playwright has fetched."""
    if named := os.environ.get("JAXEFF_BROWSER"):
        return named
    folder = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache" / "ms-playwright"))
    fetched = (str(path) for name in ("chrome", "chrome-headless-shell") for path in sorted(folder.glob(f"*/*/{name}")))
    return next(filter(None, map(shutil.which, NAMES)), None) or next(fetched, None)


BROWSER = found()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH; JAXEFF_BROWSER may name one")


def browse(tmp_path: Path, *words: str) -> str:
    """What the browser prints, with a profile of its own."""
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *words],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(text: str, tmp_path: Path, width: int, *flags: str) -> dict:
    """What measure.js finds in a page. In a frame, since a window is never as narrow as a phone."""
    inside = text.replace("</body>", f"<script>{MEASURE}</script></body>")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body><iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(inside)}"></iframe>'
    )
    shown = browse(tmp_path, *flags, "--dump-dom", frame.as_uri())
    return json.loads(html.unescape(re.search(r"<body>(.*)</body>", shown, re.DOTALL)[1]))


def on_paper(text: str) -> str:
    """The page with what its style says of paper said of the screen."""
    return text.replace("@media screen", "@media not all").replace("@media print", "@media all")


def made_up_run(folder: Path) -> str:
    """The page of a run that was never trained."""
    rng = np.random.default_rng(0)
    start = {"step": 0, "time": "2025-03-01T10:20:30+00:00", "device": "TPU v5 lite"}
    config = to_json(Experiment(LM(vocab_size=1024), train=Train(steps=2000)))
    write_json(
        folder / "run.json", {"config": config, "corpus": "ab" * 32, "data": {"documents": 90}, "starts": [start]}
    )
    lines = [
        {"step": step, "loss": 2 + 3 / step**0.3 + 0.1 * rng.normal(), "tokens": 8192 * step, "tokens_per_s": 9e4}
        | ({"eval_bits_per_byte": 1 + 2 / step**0.3} if step % 200 == 0 else {})
        for step in range(10, 2001, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_report.write(folder).read_text()


@pytest.fixture(scope="module", params=PAGES)
def page(request, tmp_path_factory) -> str:
    """A page as a person would get it, of made-up numbers."""
    if request.param == "run":
        return made_up_run(tmp_path_factory.mktemp("run"))
    if request.param == "plan":
        return plan_page("Plan: made-up", [("a", FOUND), ("b", TOO_LARGE), ("mesh.fsdp=16", FOUND)], ["1,000 steps"])
    return report.page(spread(int(request.param.split()[0])))


def check(found: dict):
    """Nothing is too wide, lies on other words, is cut off, too faint or too small to be read."""
    faults = {kind: found[kind] for kind in ("wide", "over", "cut", "faint") if found[kind]}
    assert not faults and found["smallest"] >= 8, (faults, found["smallest"])


@pytest.mark.parametrize("width", [390, 1280])
def test_on_a_screen(page, tmp_path, width):
    found = measured(page, tmp_path, width)
    assert found["width"] == width and not found["dark"]
    check(found)


def test_in_the_dark(page, tmp_path):
    found = measured(page, tmp_path, 1280, DARK)
    assert found["dark"]
    check(found)


def test_on_paper(page, tmp_path):
    check(measured(on_paper(page), tmp_path, PAPER))
    source, target = tmp_path / "page.html", tmp_path / "page.pdf"
    source.write_text(page)
    browse(tmp_path, f"--print-to-pdf={target}", "--no-pdf-header-footer", source.as_uri())
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", target.read_bytes())) <= 15


def test_faults_are_found(tmp_path):
    """What the tests above would not see is no proof."""
    words = '<text x="9" y="20">one</text><text x="12" y="22">other</text><text x="90" y="50">beyond</text>'
    far = '<div style="width:900px">'
    text = (
        f'<body style="background:#fff">{far}wide</div><p style="color:#aaa">faint</p><div style="overflow-x:auto">{far}scrolls'
        f'</div></div><svg width="100" height="60">{words}</svg></body>'
    )
    found = measured(text, tmp_path, 390)
    kinds = {kind: found[kind] for kind in ("wide", "over", "cut", "faint")}
    assert kinds == {
        "wide": ["div: wide"],
        "over": ["text: other, text: one"],
        "cut": ["text: beyond"],
        "faint": ["p: faint"],
    }
