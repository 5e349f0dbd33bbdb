"""Runs in stores: on a store in memory that stands for s3://, and on those in JAXEFF_STORES, such as "s3://bucket gs://bucket"."""

import gc
import importlib.util
import os
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from jaxeff.cli import main
from jaxeff.core.address import address
from jaxeff.core.errors import UserError
from jaxeff.data.cache import cache_root
from jaxeff.train import storage
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.loop import fit
from jaxeff.train.progress import Silent
from jaxeff.train.trained import load_trained
from tests.cli.workdirs import refused, said
from tests.train.tiny import experiment, repeated, same, stop_after

STORES = os.environ.get("JAXEFF_STORES", "").split()
STEPS = ("train.steps=20", "train.save_every=5")


class InMemory(MemoryFileSystem):
    """The one bucket of s3://, which is out of reach while `gone`."""

    protocol = ("s3",)
    store: dict = {}
    pseudo_dirs = [""]
    gone = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")

    def _open(self, *args, **options):
        if self.gone:
            raise OSError("Could not connect\nto the endpoint")
        return super()._open(*args, **options)


@pytest.fixture(params=["s3://in-memory", *STORES])
def workdir(request, monkeypatch):
    """A new address."""
    if request.param == "s3://in-memory":
        monkeypatch.setitem(_registry, "s3", InMemory)
        monkeypatch.setattr(InMemory, "gone", False)
    yield f"{request.param}/runs/{time.time_ns()}"
    storage._STORES.clear()


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """The run that never stopped, in a folder."""
    return fit(experiment(*STEPS), tmp_path_factory.mktemp("whole"), prepared=prepared)


def here() -> list:
    """The mirrors of this machine."""
    return list((cache_root() / "stores").glob(".partial-*"))


def there(workdir: str) -> list[str]:
    """What the store has."""
    fs, root = fsspec.core.url_to_fs(workdir)
    return sorted(path.removeprefix(root).strip("/") for path in fs.find(root))


def steps(workdir: str) -> set[str]:
    return {name.split("/")[1] for name in there(workdir) if name.startswith("checkpoints/")}


def forget():
    """As a process that has just begun."""
    storage._STORES.clear()
    gc.collect()
    assert not here()


def test_a_run_goes_on_from_a_store_bit_for_bit(whole, prepared, workdir):
    first = fit(experiment(*STEPS), workdir, prepared=prepared, stop=stop_after(7))
    assert first.stopped and steps(workdir) == {"00000005", "00000007"}
    forget()
    second = fit(experiment(*STEPS), workdir, prepared=prepared)
    assert repeated(second.lines) == repeated(whole.lines) and same(second.state.params, whole.state.params)
    assert steps(workdir) == {"00000015", "00000020"}
    assert {"run.json", "metrics.jsonl", "data/data.json", "data/validation.npz"} <= set(there(workdir))
    forget()
    run = load_trained(workdir)
    assert run.step == 20 and same(run.weights, whole.weights)


def test_what_a_killed_process_left(whole, prepared, workdir):
    """Lines of steps that no checkpoint holds, and a checkpoint without its end: the same steps are done again."""
    fit(experiment(*STEPS), workdir, prepared=prepared, stop=stop_after(12))
    fs, root = fsspec.core.url_to_fs(workdir)
    fs.rm(f"{root}/checkpoints/00000012/{storage.LAST}")
    if workdir.startswith("gs"):
        fs.rm(f"{root}/checkpoints/00000012/commit_success.txt")
    forget()
    assert repeated(fit(experiment(*STEPS), workdir, prepared=prepared).lines) == repeated(whole.lines)
    assert steps(workdir) == {"00000015", "00000020"}


def test_a_store_out_of_reach(whole, prepared, workdir, monkeypatch):
    if not workdir.startswith("s3://in-memory"):
        pytest.skip("a store of somebody else's")

    def lose():
        InMemory.gone = storage.place(workdir)._steps == {"00000005"}
        return False

    with pytest.raises(UserError, match=f"^{workdir} cannot be used: Could not connect to the endpoint$"):
        fit(experiment(*STEPS), workdir, prepared=prepared, stop=lose)
    monkeypatch.setattr(InMemory, "gone", False)
    assert steps(workdir) == {"00000005"}
    assert repeated(fit(experiment(*STEPS), workdir, prepared=prepared).lines) == repeated(whole.lines)


def test_commands_need_nothing_but_the_store(prepared, workdir, tmp_path, capsys, monkeypatch):
    fit(experiment(), workdir, prepared=prepared)
    fit(experiment(), tmp_path / "w", prepared=prepared)
    monkeypatch.setenv("JAXEFF_CACHE", str(tmp_path / "empty"))
    for command in ("eval", "generate --max-tokens 8 --prompt the", "describe"):
        forget()
        words = command.split()
        assert main([*words, "--workdir", workdir]) == 0
        found = capsys.readouterr().out
        assert found and found == said(capsys, *words, "--workdir", tmp_path / "w")
    assert "is in a store" in refused(capsys, "convert", "hf:nowhere", workdir)


def test_the_base_of_another_run(prepared, workdir, tmp_path):
    base = fit(experiment(), workdir, prepared=prepared)
    forget()
    run = fit(experiment(f"train.init_from={workdir}", "optim.lr=0"), tmp_path, prepared=prepared)
    assert same(run.state.params, base.state.params)


def test_who_began_last_has_it(prepared, workdir):
    def taken():
        fs, root = fsspec.core.url_to_fs(workdir)
        fs.pipe_file(f"{root}/lock", b"process 3 of elsewhere, 4")
        return False

    with pytest.raises(UserError, match=r"in use by another process \(process 3 of elsewhere\), which has begun"):
        fit(experiment(), workdir, prepared=prepared, stop=taken)


def test_a_damaged_checkpoint_is_moved_aside(whole, prepared, workdir):
    fit(experiment(*STEPS), workdir, prepared=prepared)
    fs, root = fsspec.core.url_to_fs(workdir)
    fs.pipe_file(f"{root}/checkpoints/00000020/record/metadata", b"garbage")
    forget()
    said = Said()
    assert repeated(fit(experiment(*STEPS), workdir, prepared=prepared, report=said).lines) == repeated(whole.lines)
    assert "00000020 is damaged" in said.text and any(n.startswith("damaged/00000020/") for n in there(workdir))
    assert Checkpoints(workdir, read_only=True).steps() == [15, 20]


class Said(Silent):
    """Keeps warnings."""

    text = ""

    def warn(self, text):
        self.text += text


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package(scheme, package, tmp_path):
    if importlib.util.find_spec(package):
        pytest.skip("it is there")
    with pytest.raises(UserError, match=rf"needs a package: pip install 'jaxeff\[cloud\]' \(.*{package}"):
        fit(experiment(), f"{scheme}://bucket/run")


ADDRESSES = {
    "runs/a": None,
    "/runs/a:b": None,
    "./gs:/a": None,
    "gs://bucket/run": "gs://bucket/run",
    "s3://bucket/a/b-1_2.3/": "s3://bucket/a/b-1_2.3",
}
NONE = {
    "gcs://bucket/run": "did you mean gs://bucket/run?",
    "s3a://bucket/run": "did you mean s3://bucket/run?",
    "GS://bucket/run": "did you mean gs://bucket/run?",
    "gs:/bucket/run": "did you mean gs://bucket/run?",
    "gs:///bucket/run": "gs://BUCKET/PATH",
    "gs://bucket": "gs://BUCKET/PATH",
    "s3://bucket/../run": "s3://BUCKET/PATH",
    "s3://bucket/a b": "s3://BUCKET/PATH",
    "s3://bucket/a?b": "s3://BUCKET/PATH",
    "s3://bucket/a\nb": "s3://BUCKET/PATH",
    "foo://x": "no folder and no address",
}


@pytest.mark.parametrize(("text", "found"), ADDRESSES.items())
def test_addresses(text, found):
    assert address(text) == found


@pytest.mark.parametrize(("text", "words"), NONE.items())
def test_no_addresses(text, words):
    with pytest.raises(UserError) as refusal:
        address(text)
    assert words in str(refusal.value)
