"""The shape of the package: which way imports point, how long files are, what `import jaxeff` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxeff

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxeff"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Each may import those to its left; `data`, `transforms` and `plan` stand beside the row.
ROW = ("core", "ops", "mixers", "models", "objectives", "evaluate", "train", "lab", "bench", "cli")
ALLOWED = {name: set(ROW[: i + 1]) for i, name in enumerate(ROW)}
for _name in ("evaluate", "train", "lab", "bench", "cli"):
    ALLOWED[_name] |= {"data"}
for _name in ("train", "lab", "bench", "cli"):
    ALLOWED[_name] |= {"transforms"}
ALLOWED["cli"] |= {"plan", "interop", "surgery", "transforms"}
ALLOWED["bench"] |= {"plan"}
for _name in ("train", "bench"):
    ALLOWED[_name] |= {"interop"}  # public checkpoints
ALLOWED |= {
    "": {"core"},
    "data": {"core", "data"},
    "transforms": {"core", "ops", "mixers", "transforms"},
    "surgery": {"core", "ops", "mixers", "models", "transforms", "surgery"},
    "plan": set(ROW[:8]) | {"data", "plan"},
    "interop": set(ROW[:4]) | {"data", "transforms", "interop"},
}
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "matplotlib",
    "orbax",
    "grain",
    "array_record",
    "sentencepiece",
    "rich",
    "optax",
    "flax",
    "chex",
    "transformers",
)


def imports(path: Path):
    """The names of jaxeff's modules that a file imports anywhere, in functions too."""
    package = (path.parent if path.name == "__init__.py" else path.parent).relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "jaxeff")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            if module == "jaxeff":
                yield from (f"jaxeff.{alias.name}" for alias in node.names)
            elif module.startswith("jaxeff."):
                yield module


def part(path: Path) -> str:
    """The part of the house a file belongs to: `core`, `cli`, or "" for the package's own __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    home = part(path)
    assert home in ALLOWED, f"{home} is a new part: say in ALLOWED what it may import"
    for name in imports(path):
        target = name.split(".")[1:2]
        # The package's own name, for its version, is no arrow.
        fine = not target or target[0].startswith("__") or target[0] in ALLOWED[home]
        assert fine, f"{path.relative_to(ROOT)} imports {name}: {home or 'jaxeff'} stands below it"


def test_every_part_is_a_package():
    folders = {p.parent for p in MODULES}
    assert not [str(f) for f in folders if not (f / "__init__.py").exists()]


@pytest.mark.parametrize(
    "path",
    sorted([*MODULES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("configs/**/*.py")]),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 500, "split it: one file, one idea"
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}, "name it after what it does"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_absolute_machine_paths_and_no_torch(path):
    text = path.read_text()
    assert not [name for name in ("/home/", "/root/", "/work/") if name in text]
    if "peers" not in path.parts:
        for node in ast.walk(ast.parse(text)):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not [n for n in names if n.split(".")[0] in {"torch", "transformers", "tensorflow"}]


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def test_importing_the_package_is_light():
    # Judged by what jax alone pulls in, whatever that is in its next version.
    extra = loaded_by("import jaxeff") - loaded_by("import jax, numpy")
    assert not extra & set(HEAVY)
    third_party = {n for n in extra if n not in sys.stdlib_module_names and not n.startswith("_")}
    assert third_party <= {"jaxeff"}


def test_the_command_line_shows_its_help_without_jax():
    help_of_all = "import jaxeff.cli; jaxeff.cli.parser().format_help()"
    assert not loaded_by(help_of_all) & {"jax", "numpy", *HEAVY}


@pytest.mark.parametrize("module", ["jaxeff.mixers.registry", "jaxeff.models.lm", "jaxeff.models.generate"])
def test_layers_and_models_need_no_data_or_training_libraries(module):
    assert not loaded_by(f"import {module}") & (set(HEAVY) - {"flax", "optax"})


def test_version_is_one():
    assert f"version: {jaxeff.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {jaxeff.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_public_names_exist():
    assert all(hasattr(jaxeff, name) for name in jaxeff.__all__)
