"""Safetensors files on disk: tensors by name, memory-mapped; a folder of them with its index."""

import dataclasses
import json
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.core.files import refusals, write_json

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST = 4 * 2**30  # bytes of one file of several


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor: where it lies in its file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def mapped(self) -> np.ndarray:
        """The tensor, mapped into memory: nothing is read before it is looked at."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)

    def read(self, view: np.ndarray, out: np.ndarray) -> np.ndarray:
        """The numbers of a view of `mapped`: read into `out`, of its shape, where they lie in the file in one piece, else the view.
        What is read through a mapping costs a fault a page, and counts as this process's memory as long as the mapping lasts."""
        if not view.flags.c_contiguous or not isinstance(view, np.memmap):
            return view
        whole = np.frombuffer(view._mmap, np.uint8)
        first = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY  # of the mapping, in the file
        with self.path.open("rb", buffering=0) as file:
            file.seek(first + view.ctypes.data - whole.ctypes.data)
            if file.readinto(out.view(np.uint8).reshape(-1)) != out.nbytes:
                raise UserError(f"{self.path} has become shorter while it was read")
            return out


def stored(folder: Path, dtypes: Mapping[str, Any] = DTYPES) -> dict[str, Stored]:
    """The tensors of a folder's model by name. dtypes: those that may be there.

    Raises UserError where there is no safetensors file, pickles alone, or a file that is damaged, cut short, or missing though the
    index names it.
    """
    found: dict[str, Stored] = {}
    for path in _files(folder):
        for name, tensor in header(path, dtypes).items():
            if name in found:
                raise UserError(f"{path}: tensor {name} is in {found[name].path.name} too")
            found[name] = tensor
    return found


def header(path: Path, dtypes: Mapping[str, Any] = DTYPES) -> dict[str, Stored]:
    """The tensors of one file by name. Raises UserError where it is damaged, or holds numbers of other dtypes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks that the header is sound and that the data is all there
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            described = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as safetensors, it is damaged or cut short: {error}") from None
    described.pop("__metadata__", None)
    return {name: _stored(path, 8 + size, name, entry, dtypes) for name, entry in described.items()}


def write(folder: Path, sizes: Mapping[str, int], make: Callable[[str], np.ndarray]) -> None:
    """Writes tensors, whose bytes are `sizes` by name, into one file, or several with an index; those of one file are held at once.

    Raises UserError where the file system refuses.
    """
    from safetensors.numpy import save_file

    groups = _groups(sizes)
    names = {}
    for i, group in enumerate(groups):
        path = folder / (WHOLE if len(groups) == 1 else f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors")
        partial = path.with_name(f".{path.name}")
        with refusals(path):
            save_file({name: make(name) for name in group}, partial, {"format": "pt"})
            partial.replace(path)
        names |= dict.fromkeys(group, path.name)
    if len(groups) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": names})


def _groups(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names in files of at most LARGEST bytes, but for a tensor that is larger."""
    groups, room = [[]], LARGEST
    for name, size in sizes.items():
        if size > room and groups[-1]:
            groups.append([])
            room = LARGEST
        groups[-1].append(name)
        room -= size
    return groups


def _files(folder: Path) -> list[Path]:
    """The files that hold the model."""
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        names = index.get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise UserError(f"{folder / INDEX}: weight_map must say which file has which tensor")
        files = [folder / name for name in sorted(set(names.values()))]
        missing = [path.name for path in files if path.parent != folder or not path.is_file()]
        if missing:
            raise UserError(f"{folder / INDEX} names {missing[0]}, which is not there: the download is incomplete")
        return files
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        raise UserError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code when it is opened: it is not read; "
            f"save the model as safetensors where you trust it"
        )
    raise UserError(f"{folder} has no {WHOLE} and no {INDEX}")


def read_json(path: Path) -> dict[str, Any]:
    """An object. Raises UserError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: {path.parent} is no folder of a public checkpoint") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def _stored(path: Path, start: int, name: str, entry: dict[str, Any], dtypes: Mapping[str, Any]) -> Stored:
    if entry["dtype"] not in dtypes:
        raise UserError(
            f"{path}: tensor {name} holds {entry['dtype']} numbers; {', '.join(dtypes)} are read (quantized checkpoints are not)"
        )
    return Stored(path, np.dtype(dtypes[entry["dtype"]]), tuple(entry["shape"]), start + entry["data_offsets"][0])
