"""Reading the weights of a GGUF file: in place, a few rows at a time, Q8_0 dequantized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.hub.gguf_header import GgufEntry, read_gguf_header
from gossamer.hub.gguf_tensors import gguf_tensors, is_float32
from gossamer.hub.layout import Layout, Piece, released_layout
from gossamer.hub.shards import StoredTensor
from gossamer.model.config import ModelConfig

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "Q8_0": torch.float32}
_WINDOW = 32 << 20  # bytes of the file that are mapped at a time
_EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class GgufLayout(Layout):
    """The layout of a GGUF file; as a `Layout` it is the one in which models of its type are released.

    Attributes:
        architecture: llama.cpp's name of the network
    """

    architecture: str = ""

    def stored_name(self, name: str) -> str:
        """Return the name itself: parts of a parameter have the names of the file."""
        return name

    def forms(self, parameter: str, shape: torch.Size, config: ModelConfig) -> list[list[Piece]]:
        """Return the one form in which a file of this architecture holds a parameter."""
        return [list(gguf_tensors(parameter, config, self.architecture))]

    def pieces(self, parameter: str, shape: torch.Size, config: ModelConfig) -> list[Piece]:
        """Return the tensors that a parameter of the network is in the file."""
        return self.forms(parameter, shape, config)[0]


def gguf_layout(model_type: str, architecture: str) -> GgufLayout:
    """Return the layout of a file of an architecture that holds a network of a model type."""
    released = released_layout(model_type)
    return GgufLayout(
        flat_projections=released.flat_projections,
        stacked_experts=released.stacked_experts,
        stacked_mtp_experts=released.stacked_mtp_experts,
        head="output.weight",
        architecture=architecture,
    )


def read_gguf(file: Path) -> tuple[str, dict[str, StoredTensor]]:
    """Return the architecture of a GGUF file and its tensors, each with the type in which it is loaded.

    That is the file's own type, and float32 for what is quantized. Norms and other small matrices are in float32 in
    every file; they are loaded as the embedding is, so that a network in bfloat16 comes back as one.

    Raises:
        UserError: it is no whole GGUF file, or holds tensors of a type that is not read.
    """
    header = read_gguf_header(file)
    stored = {name: StoredTensor(file, one.shape, _DTYPES[one.kind]) for name, one in header.tensors.items()}
    if _EMBEDDING in stored:
        narrow = stored[_EMBEDDING].dtype
        for name, tensor in stored.items():
            if is_float32(name) or len(tensor.shape) == 1:
                stored[name] = replace(tensor, dtype=narrow)
    return str(header.keys["general.architecture"]), stored


def read_gguf_rows(file: Path, tensors: dict[str, StoredTensor]) -> Iterator[tuple[str, int, Tensor]]:
    """Yield the tensors of a GGUF file a few rows at a time: name, first row, rows, dequantized.

    Raises:
        UserError: the file was replaced since its header was read.
    """
    status = file.stat()
    header = read_gguf_header(file)
    for name in tensors:
        entry = header.tensors[name]
        step = max(1, _WINDOW // max(1, entry.row_bytes))
        for start in range(0, entry.shape[0], step):
            now = file.stat()
            if (now.st_ino, now.st_size, now.st_mtime_ns) != (status.st_ino, status.st_size, status.st_mtime_ns):
                raise UserError(f"{file}: was replaced while it was being read; load it again")
            yield name, start, _rows(file, entry, start, min(step, entry.shape[0] - start))


def _rows(file: Path, entry: GgufEntry, start: int, count: int) -> Tensor:
    """Return some rows of a tensor: a view of the file, which is mapped as long as they live, or dequantized ones."""
    begin, size = entry.offset + start * entry.row_bytes, count * entry.row_bytes
    # Copy-on-write, since PyTorch warns of memory that may only be read.
    mapped = torch.from_numpy(np.memmap(file, np.uint8, "c", begin, size))
    shape = (count, *entry.shape[1:])
    if entry.kind != "Q8_0":
        return mapped.view(_DTYPES[entry.kind]).view(shape)
    blocks = mapped.view(-1, 34)
    scales = blocks[:, :2].contiguous().view(torch.float16).float()
    return (scales * blocks[:, 2:].contiguous().view(torch.int8)).view(shape)
