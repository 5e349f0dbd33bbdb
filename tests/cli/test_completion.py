"""Completion scripts: every command and option stands in each, and a real bash completes by its own."""

import re
import shlex
import shutil
import subprocess

import pytest

from jaxeff.cli import COMMANDS
from jaxeff.cli.completion import whole
from jaxeff.cli.shells import SHELLS
from tests.cli.workdirs import refused, said

# How a shell's script writes that an option may come.
WRITTEN = {
    "bash": lambda name: rf"[ ']{re.escape(name)}[ ']",
    "zsh": lambda name: rf"(['*]|-- |-h ){re.escape(name)}(=?\[| |;)",
    "fish": lambda name: rf" -l {re.escape(name[2:])} " if name.startswith("--") else rf" -s {re.escape(name[1:])} ",
}
PARTS = {
    "bash": lambda words: rf"^    '{''.join(' ' + word for word in words)}'\).*$",
    "zsh": lambda words: rf"^    {re.escape(words[-1])}\) .*$",
    "fish": lambda words: rf"^complete -c jaxeff -n '__jaxeff_(?:at|next) {' '.join(words)}' .*$",
}


@pytest.fixture(scope="module")
def tree():
    return whole()


@pytest.fixture(scope="module")
def scripts(tree):
    return {shell: write(tree) for shell, write in SHELLS.items()}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_there(shell, tree, scripts):
    assert [command.words[0] for command in tree.inner] == [*COMMANDS]
    for command in tree.all()[1:]:
        part = "\n".join(re.findall(PARTS[shell](command.words), scripts[shell], re.MULTILINE))
        assert part, command.words
        if shell == "zsh" and command.inner:
            part = scripts[shell]  # in a function of its own
        for option in command.options:
            assert all(re.search(WRITTEN[shell](name), part) for name in option.names), (command.words, option)


def test_the_tree_is_what_the_parsers_take(tree):
    from jaxeff.bench.registry import BENCHMARKS

    bench = next(command for command in tree.inner if command.words == ("bench",))
    assert [command.words[-1] for command in bench.inner] == [*BENCHMARKS]
    assert {"--set", "--workdir", "--data"} <= {name for option in tree.inner[0].options for name in option.names}
    assert len(tree.all()) == 1 + len(COMMANDS) + len(BENCHMARKS) and all(command.help for command in tree.all()[1:])


def completed(script: str, folder, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    line = (
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _jaxeff; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(
        ["bash", "-c", f"source /dev/stdin && {line}"], input=script, capture_output=True, text=True, cwd=folder
    )
    assert (done.returncode, done.stderr) == (0, "")
    return {*done.stdout.splitlines()} - {""}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("jaxeff tr", {"train", "transform"}),
        ("jaxeff --v", {"--version"}),
        ("jaxeff nonsense ", {*COMMANDS}),
        ("jaxeff train --dr", {"--dry-run"}),
        ("jaxeff train c", {"configs", "cat.py"}),
        ("jaxeff train cat.py --workdir ", {"configs", "my runs"}),
        ("jaxeff train --workdir = m", {"my runs"}),
        ("jaxeff train --workdir =", {"configs", "my runs"}),
        ("jaxeff train --set ", set()),
        ("jaxeff train --set train.steps = 3 --fo", {"--force"}),
        ("jaxeff eval --split t", {"train", "test"}),
        ("jaxeff export --any-base --a", {"--any-base"}),
        ("jaxeff list pre", {"presets"}),
        ("jaxeff completion ", {"bash", "zsh", "fish"}),
        ("jaxeff bench tr", {"train", "transforms"}),
        ("jaxeff bench train --pe", {"--peer", "--peer-python"}),
        ("jaxeff bench import --", {"--help", "--json", "--rounds"}),
    ],
)
def test_bash_completes(line, offered, scripts, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "my runs").mkdir()
    (tmp_path / "cat.py").touch()
    assert completed(scripts["bash"], tmp_path, *line.split(" ")) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_read_their_scripts(shell, scripts):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    done = subprocess.run([shell, "-n", "/dev/stdin"], input=scripts[shell], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_prints_a_script(scripts, capsys):
    assert said(capsys, "completion", "fish") == scripts["fish"]
    assert "no shell is called 'bsh'; did you mean 'bash'" in refused(capsys, "completion", "bsh")
