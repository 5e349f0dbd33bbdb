"""Where a workdir is: a folder, or an address in a store, gs://BUCKET/PATH or s3://BUCKET/PATH.

Of a workdir in a store a process has a folder of its own, the mirror, under the cache and only while it lives: the store alone is
what a run goes on from. Small files are read from the store at the start, written in the mirror, and copied to the store whole
before each checkpoint and at the end, for stores cannot append; process 0 does that. Checkpoints are Orbax's own affair on
gs://, where all processes write them. It cannot write to s3://: there they pass through the mirror.
"""

import contextlib
import logging
import os
import posixpath
import shutil
import socket
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from jaxeff.core.address import SCHEMES, address
from jaxeff.core.errors import UserError
from jaxeff.core.files import refusals
from jaxeff.core.processes import several

CHECKPOINTS, DAMAGED, STATE, LOCK = "checkpoints", "damaged", "state", "lock"
READ = ("run.json", "metrics.jsonl", "ablation.json", "data", "frozen")  # what a start needs, beside checkpoints
LAST = "_CHECKPOINT_METADATA"  # of a checkpoint's files in s3://: where it is, all are


class Place:
    """A workdir that is a folder, for which there is little to do.

    folder: where files are read and written. checkpoints: where Orbax has its own.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.checkpoints = folder.absolute() / CHECKPOINTS

    def refusals(self) -> contextlib.AbstractContextManager:
        """Turns what a disk or a store refuses meanwhile into a UserError."""
        return refusals(self.checkpoints)

    def claim(self) -> None:
        """This process trains here from now on. Raises UserError where that cannot be."""

    def push(self) -> None:
        """The store has what the folder has, but for checkpoints. Raises UserError where it refuses."""

    def bring(self, step: int) -> None:
        """The arrays of a checkpoint are there to be read. Raises UserError where the store refuses."""

    def send(self, wait: Callable[[], None]) -> None:
        """Begins to copy checkpoints, once `wait` returns; `settle` raises what comes of it."""

    def settle(self) -> None:
        """Returns once they are copied. Raises UserError where the store refused."""

    def set_aside(self, name: str) -> None:
        """Moves a checkpoint that cannot be read out of the way."""
        target = self.folder.absolute() / DAMAGED / name
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        (self.checkpoints / name).rename(target)


class Store(Place):
    """A workdir in gs://, with its mirror."""

    def __init__(self, address: str):
        self.address = address
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it says what it raises, with a traceback
        with self.refusals():
            import fsspec
            from etils import epath

            for scheme in SCHEMES:  # of each thread its own, which outlives what other threads and processes change
                fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
            self.fs, self.root = fsspec.core.url_to_fs(address)
            there = self._listed()
        super().__init__(self._mirror())
        self.checkpoints = epath.Path(address) / CHECKPOINTS
        self._same: dict[str, tuple[int, int]] = {}  # size and time of the files that are in the store as they are here
        self._get(name for name in there if name.partition("/")[0] in READ)

    def _mirror(self) -> Path:
        """A new folder, gone when this process is, or swept by the next one."""
        from jaxeff.data.cache import cache_root, temporary

        parent = cache_root() / "stores"
        stack = contextlib.ExitStack()
        with refusals(parent):
            parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(temporary(parent))
        weakref.finalize(self, stack.close)
        return folder

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """The clients of stores raise whatever they and their transports do: all of it means that the store is out of reach."""
        try:
            yield
        except UserError:
            raise
        except ImportError as error:
            raise UserError(f"{self.address} needs a package: pip install 'jaxeff[cloud]' ({error})") from None
        except Exception as error:
            said = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"{self.address} cannot be used: {said}") from error

    def claim(self) -> None:
        """Nothing ends a lock in a store where a process is killed: whoever began last has it, and others find out."""
        self._claim = f"process {os.getpid()} of {socket.gethostname()}, {time.time_ns()}".encode()
        with self.refusals():
            try:
                self.fs.pipe_file(self._at(LOCK), self._claim)
            except FileNotFoundError:
                raise UserError(f"{self.address}: there is no such bucket") from None

    def _check_claim(self) -> None:
        with self.refusals():
            try:
                found = self.fs.cat_file(self._at(LOCK))
            except FileNotFoundError:
                raise UserError(f"{self.address} was removed while it was in use") from None
        if found != self._claim:
            who = found.decode(errors="replace").partition(",")[0]
            raise UserError(f"{self.address} is in use by another process ({who}), which has begun after this one")

    def push(self) -> None:
        self._check_claim()
        self._put(name for name in self._files() if not name.startswith((CHECKPOINTS, LOCK)))

    def set_aside(self, name: str) -> None:
        with self.refusals():
            self.fs.mv(self._at(CHECKPOINTS, name), self._at(DAMAGED, name), recursive=True)

    def _at(self, *names: str) -> str:
        return posixpath.join(self.root, *names)

    def _listed(self) -> list[str]:
        """All that is there."""
        try:
            return [posixpath.relpath(path, self.root) for path in self.fs.find(self.root)]
        except FileNotFoundError:
            return []

    def _files(self) -> list[str]:
        """All that is in the mirror, but for files under way."""
        found = [path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return [path.relative_to(self.folder).as_posix() for path in found]

    def _get(self, names: Iterable[str]) -> None:
        names = list(names)
        for name in names:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        with self.refusals():
            self.fs.get([self._at(name) for name in names], [str(self.folder / name) for name in names])
        self._same |= {name: self._state(name) for name in names}

    def _put(self, names: Iterable[str]) -> None:
        """Copies those that have changed."""
        changed = {name: state for name in names if (state := self._state(name)) != self._same.get(name)}
        with self.refusals():
            self.fs.put([str(self.folder / name) for name in changed], [self._at(name) for name in changed])
        self._same |= changed

    def _state(self, name: str) -> tuple[int, int]:
        found = (self.folder / name).stat()
        return found.st_size, found.st_mtime_ns


class Mirrored(Store):
    """A workdir in s3://. Of its checkpoints the mirror has all but their arrays, which come when they are asked for."""

    def __init__(self, address: str):
        super().__init__(address)
        self.checkpoints = self.folder / CHECKPOINTS
        there = [name.split("/") for name in self._listed()]
        files = [parts for parts in there if parts[0] == CHECKPOINTS and len(parts) > 2]
        self._steps = {parts[1] for parts in files}  # those in the store, whole or not
        whole = {parts[1] for parts in files if parts[2] == LAST}
        self._arrays = {name: ["/".join(p) for p in files if p[1] == name and p[2] == STATE] for name in whole}
        self._get("/".join(parts) for parts in files if parts[1] in whole and parts[2] != STATE)
        self._sender, self._sending = ThreadPoolExecutor(1), Future()
        self._sending.set_result(None)

    def claim(self) -> None:
        if several():
            raise UserError(f"{self.address}: several processes keep a run in a folder that all have, or in gs://")
        super().claim()

    def bring(self, step: int) -> None:
        self._get(self._arrays.pop(f"{step:08d}", ()))

    def send(self, wait: Callable[[], None]) -> None:
        self._sending = self._sender.submit(self._send, wait)

    def settle(self) -> None:
        self._sending.result()

    def set_aside(self, name: str) -> None:
        Place.set_aside(self, name)
        self._send(lambda: None)

    def _send(self, wait: Callable[[], None]) -> None:
        """The store has the checkpoints that are here, and no others."""
        wait()
        self._check_claim()
        here = {path.name for path in self.checkpoints.iterdir() if path.name.isdecimal()}
        files = [name for name in self._files() if name.startswith(CHECKPOINTS) and name.split("/")[1] in here]
        self._put(name for name in files if not name.endswith(LAST))
        self._put(name for name in files if name.endswith(LAST))
        for name in self._steps - here:
            self._remove(name)
        self._steps = here

    def _remove(self, name: str) -> None:
        """What tells that it is whole first."""
        folder = self._at(CHECKPOINTS, name)
        with self.refusals():
            for path in (posixpath.join(folder, LAST), folder):
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm(path, recursive=True)
        self._same = {file: state for file, state in self._same.items() if f"/{name}/" not in file}


KINDS: dict[str, type[Store]] = {"gs": Store, "s3": Mirrored}
_STORES: dict[str, Store] = {}  # of this process


def place(workdir, fresh: bool = False) -> Place:
    """Where a workdir is. fresh: as its store has it now, not as it was when this process first asked.

    Raises UserError where the address is none, or the store cannot be reached.
    """
    there = address(workdir)
    if there is None:
        return Place(Path(workdir))
    if fresh or there not in _STORES:
        _STORES[there] = KINDS[there.partition(":")[0]](there)
    return _STORES[there]


def local(workdir) -> Path:
    """The folder with the small files of a workdir: itself, or its mirror. Raises UserError as `place` does."""
    return place(workdir).folder
