"""The shards of a Hugging Face directory: the headers of its safetensors files, and tensors a few rows at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gossamer.errors import UserError
from gossamer.hub.names import INDEX, WEIGHTS, first_few
from gossamer.hub.quantization import LOAD_INSTEAD
from gossamer.reading import read_object
from gossamer.typed import shown

SAVE_AGAIN = "download or save it again"
_NUMBERED = re.compile(r"(?P<stem>.+)-\d+-of-(?P<count>\d+)\.safetensors")
_MAX_NAME = 255  # bytes of a file's name
FP8 = torch.float8_e4m3fn
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_STORED = DTYPES | {"F8_E4M3": FP8}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the checkpoint, as the header of its file describes it.

    Attributes:
        file: where it is stored
        shape: its sizes
        dtype: its type in the file
    """

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the checkpoint by its name; no weights are read.

    Raises:
        UserError: there are no weights, they are pickled, a shard is missing, or shards and index do not fit.
    """
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        if pickles:
            raise UserError(
                f"{folder / pickles[0]}: pickled weights can run any code and are never loaded; "
                "convert them to safetensors with transformers' save_pretrained"
            )
        raise UserError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}; {SAVE_AGAIN}")

    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{folder / INDEX}: holds no weight_map from tensors to files; {SAVE_AGAIN}")
    stored: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or len(shard.encode()) > _MAX_NAME:
            raise UserError(f"{folder / INDEX}: names {shown(shard)}, which is not a file of this folder; {SAVE_AGAIN}")
        if not (folder / shard).is_file():
            raise UserError(f"{folder / shard}: this shard is missing, {INDEX} names it; {SAVE_AGAIN}")
        header = read_header(folder / shard)
        if twice := sorted(header.keys() & stored.keys()):
            raise UserError(f"{folder}: {twice[0]} is in {stored[twice[0]].file.name} and in {shard}; {SAVE_AGAIN}")
        if lacking := [name for name, file in weight_map.items() if file == shard and name not in header]:
            raise UserError(
                f"{folder / shard}: lacks {len(lacking)} tensors that {INDEX} places there: {first_few(lacking)}; "
                f"{SAVE_AGAIN}"
            )
        stored |= header
    _check_unnamed(folder, set(weight_map.values()))
    return stored


def _check_unnamed(folder: Path, named: set[str]) -> None:
    """Refuse a shard of the same numbering as those of the index that the index does not name."""
    numberings = {found.group("stem", "count") for name in named if (found := _NUMBERED.fullmatch(name))}
    for name in sorted(path.name for path in folder.glob("*.safetensors")):
        found = _NUMBERED.fullmatch(name)
        if found and name not in named and found.group("stem", "count") in numberings:
            raise UserError(f"{folder / name}: {INDEX} does not name this shard; {SAVE_AGAIN}")


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return every tensor of one shard by its name.

    Raises:
        UserError: it is no whole safetensors file, or holds a type that is not read here.
    """
    header = {}
    with _opened(file) as handle:
        for name in handle.keys():  # noqa: SIM118 (the handle is no dictionary)
            part = handle.get_slice(name)
            if part.get_dtype() not in _STORED:
                raise UserError(f"{file}: {name} is stored as {part.get_dtype()}; {LOAD_INSTEAD}")
            header[name] = StoredTensor(file, tuple(part.get_shape()), _STORED[part.get_dtype()])
    return header


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        UserError: it is no whole safetensors file.
    """
    with _opened(file) as handle:
        return dict(handle.metadata() or {})


@contextmanager
def utf8_path(file: Path) -> Iterator[str]:
    """Yield a path to a file that is UTF-8, since safetensors takes no other: by its folder's descriptor if need be.

    Raises:
        UserError: there is none.
    """
    if _is_utf8(str(file)):
        yield str(file)
        return
    descriptors = Path("/proc/self/fd")
    if not _is_utf8(file.name) or not descriptors.is_dir():
        raise UserError(f"{file}: its name is no UTF-8; rename it")
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        yield str(descriptors / str(folder) / file.name)
    finally:
        os.close(folder)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file; what is wrong with it becomes a UserError."""
    try:
        with utf8_path(file) as path, safe_open(path, framework="pt") as handle:
            yield handle
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); {SAVE_AGAIN}") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


def _window(size: int) -> int:
    """Return how many bytes of a file are mapped at a time: a small part, yet worth the cost of opening it again."""
    return max(32 << 20, size // 32)


def read_rows(file: Path, tensors: dict[str, StoredTensor]) -> Iterator[tuple[str, int, Tensor]]:
    """Yield the tensors of a file a few rows at a time: name, first row, rows.

    The rows are a view of the memory-mapped file, and what has been read of the file counts as this process's memory
    until the map is closed. So there is a new map after every window, and the rows must not be kept.

    Raises:
        UserError: the file cannot be read, or was replaced meanwhile.
    """
    status = file.stat()
    window, used = _window(status.st_size), 0
    batches: list[list[tuple[str, int, int]]] = [[]]
    for name, tensor in tensors.items():
        row = max(1, torch.Size(tensor.shape[1:]).numel() * tensor.dtype.itemsize)
        start = 0
        while start < tensor.shape[0]:
            if used >= window:
                batches.append([])
                used = 0
            stop = min(tensor.shape[0], start + max(1, (window - used) // row))
            batches[-1].append((name, start, stop))
            used += (stop - start) * row
            start = stop
    for batch in batches:
        with _opened(file) as handle:
            now = file.stat()
            if (now.st_ino, now.st_size, now.st_mtime_ns) != (status.st_ino, status.st_size, status.st_mtime_ns):
                raise UserError(f"{file}: was replaced while it was being read; load it again")
            for name, start, stop in batch:
                yield name, start, handle.get_tensor(name)[start:stop]


def read_tensors(tensors: dict[str, StoredTensor]) -> dict[str, Tensor]:
    """Return whole tensors by their names, as they are stored; for many small ones.

    Raises:
        UserError: a file cannot be read, or was replaced meanwhile.
    """
    found = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
    for file in {tensor.file for tensor in tensors.values()}:
        of_file = {name: tensor for name, tensor in tensors.items() if tensor.file == file}
        for name, start, rows in read_rows(file, of_file):
            found[name][start : start + len(rows)] = rows
    return found
