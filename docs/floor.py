"""The floors of setup.cfg as constraints for pip, and whether an environment is at them.

python docs/floor.py            prints NAME==FLOOR for every dependency
python docs/floor.py --check    exits with 1, and says what differs, unless this Python's environment has exactly these

Extras that need an accelerator or torch are left out: `make parity` tests the latter, `make plan` the compiler for TPUs. wandb is
large, and tests use a stand-in for it, as they do for the stores of cloud.
"""

import configparser
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SETUP = Path(__file__).parent.parent / "setup.cfg"
LEFT_OUT = {"tpu", "cuda", "plan", "parity", "lm_eval", "wandb", "cloud"}
REQUIREMENT = re.compile(r"([\w.-]+)\s*>=\s*([\w.]+)")


def floors(text: str) -> dict[str, str]:
    """name -> lowest version, of everything that the text of a setup.cfg requires. Raises ValueError for one without a floor."""
    config = configparser.ConfigParser()
    config.read_string(text)
    extras = config["options.extras_require"]
    needed = [config["options"]["install_requires"], *(extras[name] for name in extras if name not in LEFT_OUT)]
    return dict(_floor(line) for part in needed for line in _lines(part))


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))


def _floor(line: str) -> tuple[str, str]:
    found = REQUIREMENT.fullmatch(line)
    if found is None:
        raise ValueError(f"setup.cfg: expected NAME >= VERSION, found {line!r}")
    return found[1], found[2]


def differing(wanted: dict[str, str]) -> list[str]:
    """A line for each package that is not installed in exactly the wanted version."""
    found = {name: _installed(name) for name in wanted}
    return [
        f"{name} {found[name] or 'missing'}, floor {wanted[name]}" for name in wanted if found[name] != wanted[name]
    ]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(argv: list[str]) -> int:
    """Prints what the docstring says; returns the exit status."""
    wanted = floors(SETUP.read_text(encoding="utf-8"))
    if argv != ["--check"]:
        print("\n".join(f"{name}=={version}" for name, version in wanted.items()))
        return 0
    found = differing(wanted)
    print("this environment is at its floor" if not found else f"above the floor: {'; '.join(found)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
