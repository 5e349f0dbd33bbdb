"""How a run is gone on with: by its folder alone, with more steps, from a config file that was tidied up, far from its text."""

import json
import shutil

import pytest

from jaxeff.cli import main
from jaxeff.train.workdir import read_metrics
from tests.train.tiny import CONFIG, repeated

OWN = """
import dataclasses
from dataclasses import dataclass
from jaxeff.objectives import Causal
from jaxeff.train.optim import Optim
from tests.train.tiny import experiment
import neighbour  # comment


@dataclass(frozen=True)
class Mine(Causal):
    weight: float = 1.0


def config():
    return dataclasses.replace(experiment(), objective=Mine(neighbour.WEIGHT))
"""


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("going on")
    (folder / "tiny.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEFF_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def whole(place):
    """12 steps in one go."""
    assert (
        main(["train", "tiny.py", "--workdir", "whole", "--set", "train.steps=12", "--set", "optim.schedule=constant"])
        == 0
    )
    return read_metrics("whole")


def test_by_its_folder_alone_and_longer(whole, capsys):
    """With a schedule that does not know the length of the run, it is the longer run."""
    assert (
        main(
            ["train", "tiny.py", "--workdir", "parts", "--set", "optim.schedule=constant", "--set", "optim.warmup=0.0"]
        )
        == 0
    )
    assert main(["train", "tiny.py", "--workdir", "one", "--set", "optim.schedule=constant", "--set", "optim.warmup=0.0",
                 "--set", "train.steps=12"]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["train", "--workdir", "parts"]) == 0  # nothing is left to do
    assert main(["train", "--workdir", "parts", "--set", "train.steps=12"]) == 0
    out = capsys.readouterr().out
    assert (
        "going on from step 8 of 12" in out
        and "8 steps become 12: the learning rate goes on at 0.01, it was 0.01" in out
    )
    assert repeated(read_metrics("parts")) == repeated(read_metrics("one"))
    assert json.loads(open("parts/run.json").read())["config"]["train"]["steps"] == 12
    assert main(["train", "--workdir", "parts"]) == 0, "and it is a run of 12 steps from now on"


def test_neither_shorter_nor_longer_before_it_is_finished(whole, capsys):
    for steps, words in ((4, "none shorter"), (12, "")):
        assert main(["train", "--workdir", "whole", "--set", f"train.steps={steps}"]) == (2 if words else 0)
        assert words in capsys.readouterr().err


def test_comments_and_neighbours_of_a_config(place, capsys):
    """A comment may change, code may not; what lies beside the file can be imported."""
    (place / "own.py").write_text(OWN)
    (place / "neighbour.py").write_text("WEIGHT = 1.0\n")
    words = ["train", "own.py", "--workdir", "own"]
    assert main(words) == 0
    (place / "own.py").write_text(OWN.replace("# comment", "# another one").replace("\n\n\n", "\n\n"))
    assert main([*words, "--set", "train.steps=9"]) == 0
    (place / "own.py").write_text(OWN.replace("1.0", "2.0"))
    capsys.readouterr()
    assert main(words) == 2
    assert "another config" in capsys.readouterr().err


def test_a_workdir_needs_neither_its_corpus_nor_the_cache(place, tmp_path, capsys, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The cat number {i} sat on mat number {i * 7 % 11}." for i in range(400)))
    words = ["--set", "data.source=text", "--set", f"data.source.paths={text}", "--set", "data.source.piece_chars=200"]
    words += [
        "--set",
        "data.tokenizer=sentence_piece",
        "--set",
        "data.tokenizer.vocab_size=300",
        "--set",
        "train.steps=2",
    ]
    assert main(["train", "tiny.py", "--workdir", "text", "--set", "model.vocab_size=300", *words]) == 0
    capsys.readouterr()
    assert main(["eval", "--workdir", "text"]) == 0
    before = capsys.readouterr().out.splitlines()[-1]
    moved = shutil.move("text", tmp_path / "elsewhere")
    text.unlink()
    monkeypatch.setenv("JAXEFF_CACHE", str(tmp_path / "empty"))
    assert main(["eval", "--workdir", str(moved)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == before
    assert main(["eval", "--workdir", str(moved), "--split", "test"]) == 0
    assert main(["generate", "--workdir", str(moved), "--prompt", "The cat", "--max-tokens", "3"]) == 0
    capsys.readouterr()
    assert main(["eval", "--workdir", str(moved), "--split", "train"]) == 2
    assert "text.txt" in capsys.readouterr().err
    assert main(["train", "--workdir", str(moved), "--set", "train.steps=4"]) == 2, "training needs the rows"


def test_a_folder_that_is_removed_meanwhile_is_an_error(place, capsys, monkeypatch):
    from jaxeff.train.progress import Lines

    before = Lines.step

    def step(self, step, *args):
        if step == 4:
            shutil.rmtree("removed")
        before(self, step, *args)

    monkeypatch.setattr(Lines, "step", step)
    assert main(["train", "tiny.py", "--workdir", "removed"]) == 2
    assert "was removed or replaced while it was in use" in capsys.readouterr().err


def test_speed_is_that_of_this_start(place):
    """Not the tokens of all starts over the seconds of this one."""
    words = ["train", "tiny.py", "--workdir", "fast", "--set", "train.log_every=1"]
    assert main(words) == 0
    assert main([*words, "--set", "train.steps=16"]) == 0
    lines = {line["step"]: line for line in read_metrics("fast")}
    assert lines[9]["tokens_per_s"] is None, "the step that was compiled says nothing"
    for step in range(11, 16):
        done, seconds = (lines[step][name] - lines[9][name] for name in ("tokens", "seconds"))
        assert lines[step]["tokens_per_s"] == pytest.approx(done / seconds, rel=0.1)


def test_a_dry_run_writes_nothing(place, capsys):
    assert main(["train", "tiny.py", "--workdir", "dry", "--dry-run", "--set", "model.d_model=24"]) == 0
    out = capsys.readouterr().out
    assert "model.d_model = 24\n" in out and "parameters: " in out and " epochs" in out
    assert not (place / "dry").exists()
