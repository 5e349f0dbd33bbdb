"""The command line: what each command prints, and one clear line for whatever a user can get wrong."""

import json
import re
import shutil
import subprocess

import pytest

from jaxeff.bench.registry import BENCHMARKS
from jaxeff.cli import COMMANDS, main
from jaxeff.train.workdir import locked
from tests.cli.workdirs import refused
from tests.train.tiny import CONFIG, run


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """No test writes to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEFF_CACHE", str(tmp_path_factory.mktemp("cli") / "cache"))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


BOUND = "model.max_positions=64"  # of every model here that is compiled, so that it is compiled once


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config):
    """A finished run. Not to be written to."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", config, "--workdir", str(workdir), "--set", BOUND]) == 0
    return str(workdir)


def test_train_prints_its_steps_and_end(config, tmp_path, capsys):
    words = ["train", config, "--workdir", str(tmp_path), "--set", BOUND]
    assert main([*words, "--set", "train.steps=2", "--set", "train.log_every=1"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[-1].startswith(f"trained 2 steps in {tmp_path}: validation ") and lines[-1].endswith(" bits per byte")
    assert any(line.startswith("step 2/2") and "loss" in line for line in lines) and said.err == ""


def readings(capsys, *words) -> str:
    """The last line that `jaxeff eval` prints."""
    capsys.readouterr()
    assert main(["eval", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_eval_prints_readings(trained, capsys):
    validation = readings(capsys, "--workdir", trained)
    assert re.fullmatch(
        r"validation at step 8: loss \d\.\d{4}, perplexity \d+\.\d{4}, accuracy 0\.\d{4}, bits per byte \d\.\d{4}"
        r" \([\d,]+ targets, [\d,]+ bytes\)",
        validation,
    )
    test = readings(capsys, "--workdir", trained, "--split", "test")
    assert test.startswith("test at step 8: ") and test.split(": ")[1] != validation.split(": ")[1]
    assert readings(capsys, "--workdir", trained) == validation


def test_generate_continues_the_prompt(trained, capsys):
    capsys.readouterr()
    words = ["generate", "--workdir", trained, "--prompt", "the cat", "--max-tokens", "5"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert first.startswith("the cat")
    assert main(words) == 0 and capsys.readouterr().out == first
    assert main([*words, "--temperature", "1", "--top-k", "5", "--seed", "3"]) == 0
    assert capsys.readouterr().out.startswith("the cat")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.stepz=3"], "did you mean 'steps'"),
        (["train.steps=three"], "expected an integer, found 'three'"),
        (["model.stages.0.pattern=gqq"], "did you mean 'gqa'"),
        (["optim.name=adamm"], "did you mean"),
        (["data.batch_size=3", "train.accumulate=2"], "data.batch_size=3 is not divisible"),
        (["mesh.data=64", "data.batch_size=64"], "needs 64 devices; there are 4"),
        (["model.vocab_size=100"], "set model.vocab_size=259"),
        (["data.batch_size=4000"], "fewer than batch_size"),
        ([BOUND, "optim.lr=1e30", "train.max_bad_steps=2"], "was not finite in 2 steps in a row"),
        (["train.tensorboard=true"], "pip install 'jaxeff[tensorboard]'"),
        (["train.wandb=true"], "pip install 'jaxeff[wandb]'"),
        (["data.source=text", "data.source.paths=nowhere.txt"], "nowhere.txt"),
        (["data.tokenizer=sentence_piece", "data.tokenizer.vocab_size=9999"], "largest possible vocab_size"),
    ],
)
def test_settings_that_cannot_be(config, tmp_path, capsys, monkeypatch, settings, words):
    for package in ("tensorboardX", "wandb"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    assert words in refused(
        capsys, "train", config, "--workdir", tmp_path, *(w for s in settings for w in ("--set", s))
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the corpus is empty"),
        (b"some text \xff\xfe that is not", "UTF-8"),
    ],
)
def test_corpora_that_cannot_be(config, tmp_path, capsys, content, words):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    settings = ("--set", "data.source=text", "--set", f"data.source.paths={path}")
    assert words in refused(capsys, "train", config, "--workdir", tmp_path / "w", *settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def config(:\n", ":1:"),
        ("x = 3\n", "defines no function config()"),
        ("def config():\n    return None\n", "must return an Experiment, found NoneType"),
        ("def config():\n    return 1 / 0\n", ":2: ZeroDivisionError"),
    ],
)
def test_config_files_that_cannot_be(tmp_path, capsys, text, words):
    path = tmp_path / "c.py"
    path.write_text(text)
    assert words in refused(capsys, "train", path, "--workdir", tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_config_file_absent(config, tmp_path, capsys):
    assert "did you mean" in refused(capsys, "train", config.replace("tiny", "tinny"), "--workdir", tmp_path)


def test_workdirs_that_cannot_be(config, trained, tmp_path, capsys):
    said = refused(capsys, "train", config, "--workdir", trained)
    assert "belongs to a run with another config (model.max_positions: 64 there, None now)" in said
    with locked(tmp_path):
        assert "in use by another process" in refused(capsys, "train", config, "--workdir", tmp_path)
    for command in ("eval", "generate"):
        assert "holds no training run" in refused(capsys, command, "--workdir", tmp_path / "nowhere")
        assert "holds no training run" in refused(capsys, command, "--workdir", config)
    shutil.copy(f"{trained}/run.json", tmp_path)
    for command in ("eval", "generate"):
        assert "has no checkpoint yet" in refused(capsys, command, "--workdir", tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert "run.json cannot be read" in refused(capsys, "eval", "--workdir", tmp_path)
    assert "cannot write to" in refused(capsys, "train", config, "--workdir", config)


def test_a_workdir_of_another_version(config, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "w")
    path = tmp_path / "w" / "run.json"
    run = json.loads(path.read_text())
    model = run["config"]["model"]
    model["pattern"], model["repeats"] = model.pop("stages")[0]["pattern"], 1  # as in 0.1.0
    path.write_text(json.dumps(run))
    for command in (("train", config), ("eval",), ("generate",)):
        said = refused(capsys, *command, "--workdir", tmp_path / "w")
        assert (
            "jaxeff.models.lm.LM a field 'pattern', which it does not have: another version of jaxeff wrote it" in said
        )


def test_damaged_checkpoint(trained, tmp_path, capsys):
    """Evaluation falls back too, says so, and moves nothing."""
    workdir = shutil.copytree(trained, tmp_path / "w")
    shutil.rmtree(workdir / "checkpoints" / "00000008" / "state")
    capsys.readouterr()
    assert main(["eval", "--workdir", str(workdir)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("validation at step 4: ")
    assert (
        said.err.startswith("jaxeff: checkpoint ") and "00000008 is damaged" in said.err and said.err.count("\n") == 1
    )
    assert (workdir / "checkpoints" / "00000008").exists()
    shutil.rmtree(workdir / "checkpoints" / "00000004" / "state")
    assert main(["eval", "--workdir", str(workdir)]) == 2
    assert "no checkpoint in" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "x" * 70, "--max-tokens", "1"], "72 positions; the model has max_positions=64"),
        (["--max-tokens", "64"], "65 positions"),
        (["--max-tokens", "0"], "max_tokens must be at least 1"),
        (["--max-tokens", "9", "--temperature", "-1"], "temperature must be at least 0"),
        (["--max-tokens", "9", "--temperature", "1", "--top-k", "0"], "top_k must lie in"),
        (["--max-tokens", "9", "--temperature", "1", "--top-p", "2"], "top_p must lie in"),
        (["--prompt", "\udcff"], "the prompt is not UTF-8"),
    ],
)
def test_generations_that_cannot_be(trained, capsys, options, words):
    assert words in refused(capsys, "generate", "--workdir", trained, *options)


def test_split_that_is_not_there(trained, capsys):
    assert "did you mean 'test'" in refused(capsys, "eval", "--workdir", trained, "--split", "tests")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--", "jaxeff: error: the following arguments are required: COMMAND"),
        ("trian", "jaxeff: error: argument COMMAND: invalid choice: 'trian'"),
        ("train", "jaxeff train: error: the following arguments are required: --workdir"),
        ("eval --wrkdir x", "jaxeff eval: error: one of the arguments --workdir --model is required"),
        ("eval --workdir=", "jaxeff eval: error: argument --workdir: a folder must have a name"),
        (
            "transform --workdir x --apply y --out=",
            "jaxeff transform: error: argument --out: a folder must have a name",
        ),
        (
            "generate --seed y",
            "jaxeff generate: error: argument --seed: a seed is a whole number in 0..2**32-1, found 'y'",
        ),
        ("bench trian", "jaxeff bench: error: argument NAME: invalid choice: 'trian'"),
        ("bench generate --rounds x", "jaxeff bench generate: error: argument --rounds: invalid int value: 'x'"),
        ("bench generate --sizes 256", "jaxeff bench: error: unrecognized arguments: --sizes 256"),
    ],
)
def test_command_lines_that_cannot_be_read(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith(said) and err.count("\n") == 1 and err.endswith(" --help\n"), err


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.startswith("usage: jaxeff ")
    assert all(re.search(rf"^    {name}\b", shown.out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("words", ["bench --help", "bench -h", "bench"])
def test_benchmarks_are_listed(words, capsys):
    assert main(words.split()) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and all(re.search(rf"^{name} ", shown.out, re.MULTILINE) for name in BENCHMARKS)


@pytest.mark.parametrize("words", ["bench import --help", "bench import -h"])
def test_options_of_a_benchmark_are_shown(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    shown = capsys.readouterr().out
    assert end.value.code == 0 and shown.startswith("usage: jaxeff bench import ") and "--rounds" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("decode --mixers gqq", "no mixer is called 'gqq'; did you mean 'gqa'?"),
        ("decode --contexts 12a", "whole numbers from 1 with commas between, found '12a'"),
        ("train --peer hff", "no peer is called 'hff'; did you mean 'hf'?"),
        ("train --sizes 256", "a size is TIMExBATCH, such as 256x4; found '256'"),
        ("train --d-model 12a", "whole numbers from 1 with commas between, found '12a'"),
        ("train --dtype float31 --peer none", "no dtype is called 'float31'; did you mean"),
    ],
)
def test_benchmarks_that_cannot_be(words, said, capsys):
    assert said in refused(capsys, "bench", *words.split())


def test_internal_errors_keep_their_traceback(config, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr("jaxeff.train.loop.fit", broken)
    with pytest.raises(KeyError, match="a bug"):
        main(["train", config, "--workdir", str(tmp_path)])


def test_stopped_from_the_keyboard(trained, monkeypatch, capsys):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxeff.evaluate.scores.evaluate", stopped)
    assert main(["eval", "--workdir", trained]) == 130
    assert capsys.readouterr().err.endswith("jaxeff: stopped\n")


REFUSALS = [
    OSError(30, "Read-only file system", "/x/y"),
    OSError(28, "No space left on device"),
    PermissionError(13, "Permission denied"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.strerror)
def test_refusals_of_the_file_system(config, tmp_path, capsys, monkeypatch, error):
    """Wherever they come from."""

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("jaxeff.train.loop.fit", refuse)
    assert error.strerror.lower() in refused(capsys, "train", config, "--workdir", tmp_path)


def mounted(folder, size: str) -> bool:
    """A file system of its own, if this user may."""
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def test_real_full_disk(config, tmp_path, capsys):
    """One line; and with space again, the same command goes on from the last whole checkpoint."""
    disk = tmp_path / "disk"
    if not mounted(disk, "1m"):
        pytest.skip("mounting is not allowed here")
    try:
        words = ("train", config, "--workdir", disk / "w", "--set", BOUND, "--set", "train.save_every=1")
        filler = disk / "filler"
        filler.write_bytes(bytes(500 << 10))
        said = refused(capsys, *words, "--set", "train.keep=100")
        assert "no space left on device" in said
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert main([str(word) for word in words]) == 0
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert "read-only file system" in refused(capsys, *words[:2], "--workdir", disk / "new")
        assert "read-only file system" in refused(capsys, *words)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_as_a_process(config, tmp_path, capsys):
    """Exit codes and streams of the real thing."""
    done = run(tmp_path, "train", config, "--workdir", tmp_path / "w", "--set", "train.stepz=3")
    assert done.returncode == 2 and done.stdout == "starting JAX\n"
    assert done.stderr.startswith("jaxeff: error: ") and done.stderr.count("\n") == 1
    (tmp_path / "broken.py").write_text("def config():\n    raise ValueError('a\\nb')\n")
    said = refused(capsys, "train", tmp_path / "broken.py", "--workdir", tmp_path / "w")
    assert said == f"jaxeff: error: {tmp_path / 'broken.py'}:2: a b\n"


def test_a_flag_that_xla_does_not_know_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_nonsense_flag=1")
    assert main(["list", "mixers"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxeff: error: XLA_FLAGS has a flag that XLA does not know, --xla_nonsense_flag;")
    assert said.count("\n") == 1
