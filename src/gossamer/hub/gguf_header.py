"""The header of a GGUF file: its keys, and where each tensor lies.

The format is that of ggml's `docs/gguf.md`, versions 2 and 3, in little-endian bytes. A file that somebody else wrote
may hold anything: every length is compared with the file before it is used.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.errors import UserError, shorten
from gossamer.reading import open_to_read

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_MAX_DIMENSIONS = 4
_DOWNLOAD_AGAIN = "download or write it again"

# Types of a value of a key, by number: struct's letter and NumPy's name. Strings and arrays are read by themselves.
_NUMBERS = {
    0: ("B", "u1"),
    1: ("b", "i1"),
    2: ("H", "<u2"),
    3: ("h", "<i2"),
    4: ("I", "<u4"),
    5: ("i", "<i4"),
    6: ("f", "<f4"),
    7: ("?", "?"),
    10: ("Q", "<u8"),
    11: ("q", "<i8"),
    12: ("d", "<f8"),
}
_STRING, _ARRAY = 8, 9

# Types of tensors that are read, by number: name, values of a block, bytes of a block.
_BLOCKS = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 8: ("Q8_0", 32, 34), 30: ("BF16", 1, 2)}
# Those that are not, for the message.
_OTHER_TYPES = {
    number: name
    for number, name in enumerate(
        "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S "
        "IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 Q4_0_4_4 Q4_0_4_8 Q4_0_8_8 TQ1_0 TQ2_0 IQ4_NL_4_4 "
        "IQ4_NL_4_8 IQ4_NL_8_8 MXFP4 NVFP4".split()
    )
}


@dataclass(frozen=True)
class GgufEntry:
    """A tensor of a GGUF file.

    Attributes:
        shape: its sizes in PyTorch's order, the last one contiguous
        kind: its type: F32, F16, BF16 or Q8_0
        offset: where its bytes begin in the file
    """

    shape: tuple[int, ...]
    kind: str
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, which is all that has one index in the first dimension."""
        values, size = next((values, size) for name, values, size in _BLOCKS.values() if name == self.kind)
        return math.prod(self.shape[1:]) // values * size


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file.

    Attributes:
        keys: its keys; arrays are lists
        tensors: its tensors by name
    """

    keys: dict[str, Any]
    tensors: dict[str, GgufEntry]


class _Cursor:
    """Reads values one after another from bytes, and refuses to read beyond their end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.position = data, 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        end = self.position + count
        if end > len(self._data):
            raise ValueError("it ends within its header")
        found = self._data[self.position : end]
        self.position = end
        return found

    def number(self, letter: str) -> Any:
        """Return the next number, by struct's letter."""
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def string(self) -> str:
        """Return the next string; bytes that are not UTF-8 are refused."""
        return self.take(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        """Return the next value of a type, by its number."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _NUMBERS:
            raise ValueError(f"it holds a value of the unknown type {kind}")
        return self.number(_NUMBERS[kind][0])

    def _array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind in _NUMBERS:
            dtype = np.dtype(_NUMBERS[kind][1])
            found: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
            return found
        if kind != _STRING:
            raise ValueError(f"it holds an array of the type {kind}")
        return [self.string() for _ in range(count)]


def read_gguf_header(file: Path) -> GgufHeader:
    """Return the header of a GGUF file.

    Raises:
        UserError: it is no whole GGUF file, is one of several parts, or holds tensors of a type that is not read.
    """
    with open_to_read(file) as opened:
        try:
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _read(_Cursor(data), len(data), file)
        except UserError:
            raise
        except (ValueError, struct.error, OverflowError) as error:
            raise UserError(f"{file}: not a whole GGUF file ({shorten(error)}); {_DOWNLOAD_AGAIN}") from error
    if (parts := header.keys.get("split.count", 0)) not in (0, 1):
        raise UserError(f"{file}: one of {parts} parts; join them with llama.cpp's: llama-gguf-split --merge")
    return header


def _read(cursor: _Cursor, size: int, file: Path) -> GgufHeader:
    """Read a header.

    Args:
        cursor: at the beginning of the file
        size: of the file, in bytes
        file: its name, for messages
    """
    if cursor.take(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    if (version := cursor.number("I")) not in _VERSIONS:
        raise ValueError(f"version {version}; gossamer reads little-endian files of versions 2 and 3")
    num_tensors, num_keys = cursor.number("Q"), cursor.number("Q")
    keys: dict[str, Any] = {}
    for _ in range(num_keys):
        name = cursor.string()
        keys[name] = cursor.value(cursor.number("I"))
    found = [_tensor(cursor, file) for _ in range(num_tensors)]
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
        raise ValueError(f"an alignment of {alignment} bytes")
    begin = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufEntry] = {}
    for name, entry in found:
        place = GgufEntry(entry.shape, entry.kind, begin + entry.offset)
        if name in tensors:
            raise ValueError(f"it holds {shorten(name)} twice")
        if entry.offset % alignment or place.offset + entry.shape[0] * entry.row_bytes > size:
            raise ValueError(f"it ends before {shorten(name)} does")
        tensors[name] = place
    return GgufHeader(keys, tensors)


def _tensor(cursor: _Cursor, file: Path) -> tuple[str, GgufEntry]:
    """Read the name of a tensor and its entry, whose offset is still counted from the end of the header."""
    name, dimensions = cursor.string(), cursor.number("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ValueError(f"{shorten(name)} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    number, offset = cursor.number("I"), cursor.number("Q")
    if number not in _BLOCKS:
        kind = _OTHER_TYPES.get(number, f"type {number}")
        raise UserError(
            f"{file}: {shorten(name)} is stored as {kind}; gossamer reads F32, F16, BF16 and Q8_0, "
            "so get the file in one of these"
        )
    kind, values, _ = _BLOCKS[number]
    if math.prod(shape) > 1 << 48 or shape[-1] % values:
        raise ValueError(f"{shorten(name)} has the shape {list(shape)}")
    return name, GgufEntry(shape, kind, offset)
