"""Completion scripts of three shells, each a function of what the command line takes.

print(SHELLS["bash"](completion.whole()))
"""

import re
import shlex
from collections.abc import Callable, Iterable

from jaxeff.cli.completion import FILES, FOLDERS, Argument, Command

BASH = """\
# Completion of jaxeff for bash. To keep it: jaxeff completion bash > ~/.local/share/bash-completion/completions/jaxeff
_jaxeff() {
  local IFS=$' \\t\\n' at="" i=1 commands="" options="" values="" places=""
  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
  # --workdir=x are three words to bash
  if [[ $word == "=" ]]; then word=""; elif [[ $before == "=" ]]; then before="${COMP_WORDS[COMP_CWORD-2]}"; fi
  while ((i < COMP_CWORD)); do
    case "$at ${COMP_WORDS[i]}" in
      @COMMANDS@) at="$at ${COMP_WORDS[i]}" ;;
      *) break ;;
    esac
    i=$((i + 1))
  done
  case "$at" in
@WORDS@
  esac
  case "$at $before" in
@VALUES@
    *) if [[ $word == -* || -z $commands$places ]]; then values="$options"; else values="$commands$places"; fi ;;
  esac
  IFS=$'\\n'
  case "$values" in
    @files) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$word")) ;;
    @folders) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -d -- "$word")) ;;
    *) IFS=$' \\n'; COMPREPLY=($(compgen -W "$values" -- "$word")) ;;
  esac
}
complete -F _jaxeff jaxeff
"""


def bash(top: Command) -> str:
    """For bash 3.2 and newer."""
    commands = top.all()
    known = "|".join(_quoted(_path(command)) for command in commands[1:])
    words = [f"    {_quoted(_path(command))}) {_bash_words(command)} ;;" for command in commands]
    return _filled(BASH, COMMANDS=known, WORDS="\n".join(words), VALUES="\n".join(_bash_values(commands)))


def _bash_words(command: Command) -> str:
    found = {
        "commands": " ".join(inner.words[-1] for inner in command.inner),
        "options": " ".join(name for option in command.options for name in option.names),
        "places": _bash_kind(command.places[0]) if command.places else "",
    }
    return " ".join(f"{name}={shlex.quote(text)}" for name, text in found.items() if text)


def _bash_values(commands: Iterable[Command]) -> Iterable[str]:
    """A line for each option that takes a value."""
    for command in commands:
        for option in command.options:
            if option.values is not None:
                names = "|".join(_quoted(f"{_path(command)} {name}") for name in option.names)
                yield f"    {names}) values={shlex.quote(_bash_kind(option))} ;;"


def _bash_kind(argument: Argument) -> str:
    values = argument.values
    return f"@{values}" if values in (FILES, FOLDERS) else " ".join(values or ())


ZSH = """\
#compdef jaxeff
# Completion of jaxeff for zsh. To keep it: jaxeff completion zsh > a folder of $fpath, as the file _jaxeff
@FUNCTIONS@
if [[ $funcstack[1] == _jaxeff ]]; then _jaxeff "$@"; else compdef _jaxeff jaxeff; fi
"""

ZSH_GROUP = """\
@NAME@() {
  local -a commands=(
@COMMANDS@
  )
  if ((CURRENT == 2)); then
    if [[ $PREFIX == -* ]]; then compadd -- @OPTIONS@; else _describe command commands; fi
    return
  fi
  case $words[2] in
@CASES@
  esac
}
"""


def zsh(top: Command) -> str:
    """For zsh."""
    groups = [command for command in top.all() if command.inner]
    return _filled(ZSH, FUNCTIONS="".join(map(_zsh_group, reversed(groups))))


def _zsh_group(command: Command) -> str:
    """The function that completes a command with commands within."""
    described = [f"    {_quoted(f'{inner.words[-1]}:{inner.help}')}" for inner in command.inner]
    cases = [f"    {inner.words[-1]}) shift words; ((CURRENT--)); {_zsh_does(inner)} ;;" for inner in command.inner]
    options = " ".join(name for option in command.options for name in option.names)
    return _filled(
        ZSH_GROUP, NAME=_zsh_name(command), COMMANDS="\n".join(described), OPTIONS=options, CASES="\n".join(cases)
    )


def _zsh_name(command: Command) -> str:
    return "_".join(("_jaxeff", *command.words))


def _zsh_does(command: Command) -> str:
    if command.inner:
        return _zsh_name(command)
    specs = [_zsh_option(option, name) for option in command.options for name in option.names]
    specs += [
        f"{'*' if place.many else i}:{place.metavar}:{_zsh_kind(place)}" for i, place in enumerate(command.places, 1)
    ]
    return " ".join(["_arguments", *map(_quoted, specs)])


def _zsh_option(option: Argument, name: str) -> str:
    told = option.help.replace("[", "(").replace("]", ")").replace(":", "\\:")
    again, takes = "*" if option.many else "", option.values is not None
    value = f":{option.metavar.replace(':', ' ')}:{_zsh_kind(option)}" if takes else ""
    return f"{again}{name}{'=' if takes and name.startswith('--') else ''}[{told}]{value}"


def _zsh_kind(argument: Argument) -> str:
    if argument.values in (FILES, FOLDERS):
        return "_files" if argument.values == FILES else "_files -/"
    return f"({' '.join(argument.values)})" if argument.values else " "


FISH = """\
# Completion of jaxeff for fish. To keep it: jaxeff completion fish > ~/.config/fish/completions/jaxeff.fish
function __jaxeff_at
    set -l words (commandline -opc)
    for word in jaxeff $argv
        test "$word" = jaxeff -o "$words[1]" = "$word"; or return 1
        set -e words[1]
    end
end
function __jaxeff_next
    test (count (commandline -opc)) -eq (math (count $argv) + 1); and __jaxeff_at $argv
end
complete -c jaxeff -f
"""


def fish(top: Command) -> str:
    """For fish 3 and newer."""
    return FISH + "".join(f"complete -c jaxeff {line}\n" for command in top.all() for line in _fish_lines(command))


def _fish_lines(command: Command) -> Iterable[str]:
    """What is to be completed after the words of a command."""
    here, next_to = (f"-n {_fish(' '.join((test, *command.words)))}" for test in ("__jaxeff_at", "__jaxeff_next"))
    for inner in command.inner:
        yield f"{next_to} -a {inner.words[-1]} -d {_fish(inner.help)}"
    for option in command.options:
        names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
        yield f"{next_to if command.inner else here} {names} {_fish_kind(option)}-d {_fish(option.help)}"
    for place in command.places[:1]:
        if place.values:
            yield f"{here} {_fish_kind(place).replace('-r ', '').replace('-x ', '')}-d {_fish(place.metavar)}"


def _fish_kind(argument: Argument) -> str:
    if argument.values is None:
        return ""
    if argument.values == FILES:
        return "-r -F "
    if argument.values == FOLDERS:
        return "-x -a '(__fish_complete_directories (commandline -ct))' "
    return f"-x -a {_fish(' '.join(argument.values))} " if argument.values else "-x "


def _fish(text: str) -> str:
    """Quoted for fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _path(command: Command) -> str:
    """The words of a command as the scripts collect them, a blank before each."""
    return "".join(f" {word}" for word in command.words)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _filled(template: str, **parts: str) -> str:
    """The template with each @NAME@ replaced, all at once: a part may hold such a mark."""
    return re.sub(r"@([A-Z]+)@", lambda mark: parts[mark[1]], template)


SHELLS: dict[str, Callable[[Command], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
