"""A file's bytes as UTF-8: decompressed and, where its byte order mark says UTF-16 or UTF-32, recoded, block by block.

Whatever the file's size and however far it unpacks, a block is in memory at a time.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from gossamer.errors import UserError
from gossamer.reading import open_to_read

__all__ = ["COMPRESSED", "Tally", "kind_of", "open_stream"]

_BLOCK = 1 << 20  # bytes read at once

COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst"})
"""Suffixes of files that are unpacked while they are read; the suffix before says what is in them."""

# Longest first: UTF-32's little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Tally:
    """What one reading of a file had to put up with.

    Attributes:
        replaced: characters that are U+FFFD because their bytes were none of the encoding
        encoding: that its byte order mark says
    """

    def __init__(self) -> None:
        self.replaced = 0
        self.encoding = "utf-8"


def kind_of(path: Path) -> str:
    """The suffix that says what a file holds, in lower case: `.jsonl` of `a.jsonl`, `a.JSONL` and `a.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_stream(path: Path, errors: str, tally: Tally) -> Iterator[BinaryIO]:
    """Open a file for reading UTF-8.

    Args:
        path: the file
        errors: "strict" or "replace", for UTF-16 and UTF-32; UTF-8 comes as it is
        tally: told of what was replaced there

    Raises:
        UserError: here or while it is read: no such file, damaged or cut compression, or not the encoding of its mark.
    """
    with open_to_read(path, "check its permissions, or leave it out") as raw:
        plain: Any = io.BufferedReader(_Guarded(_unpacked(raw, path), path), _BLOCK)
        head = plain.peek(4)[:4]
        encoding = next((name for mark, name in _MARKS if head.startswith(mark)), None)
        if encoding is not None:
            tally.encoding = encoding
            plain = io.BufferedReader(_Recoded(plain, path, encoding, errors, tally), _BLOCK)
        yield cast(BinaryIO, plain)


def _unpacked(raw: io.BufferedReader, path: Path) -> Any:
    match path.suffix.lower():
        case ".gz":
            return gzip.GzipFile(fileobj=raw)
        case ".bz2":
            return bz2.BZ2File(raw)
        case ".xz":
            return lzma.LZMAFile(raw)
        case ".zst":
            return _zstandard(raw, path)
    return raw


def _zstandard(raw: io.BufferedReader, path: Path) -> Any:
    """By the standard library since Python 3.14, else by whichever library is there."""
    makers: dict[str, Callable[[Any], Any]] = {
        "compression.zstd": lambda library: library.ZstdFile(raw),
        "zstandard": lambda library: library.ZstdDecompressor().stream_reader(raw, read_across_frames=True),
        "pyarrow": lambda library: library.CompressedInputStream(raw, "zstd"),
    }
    for name, make in makers.items():
        try:
            return make(importlib.import_module(name))
        except ImportError:
            continue
    raise UserError(f"{path}: unpacking it needs a library; install one with: pip install zstandard")


class _Guarded(io.RawIOBase):
    """Bytes of a decompressor, whose complaints become one line that names the file."""

    def __init__(self, source: Any, path: Path) -> None:
        self.source, self.path = source, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self.source.read(len(buffer))
        except Exception as error:  # each library has its own: EOFError, zlib.error, LZMAError, OSError, ZstdError
            if self.path.suffix.lower() not in COMPRESSED and isinstance(error, OSError):
                reason = f"cannot be read ({error.strerror or error}); check its disk, or leave it out"
            elif isinstance(error, (EOFError, OSError, ValueError, RuntimeError, zlib.error, lzma.LZMAError)) or (
                type(error).__module__.split(".")[0] in ("zstandard", "zstd", "compression", "pyarrow", "_zstd")
            ):
                reason = f"damaged or cut short ({' '.join(str(error).split())}); pack it anew, or leave it out"
            else:
                raise
            raise UserError(f"{self.path}: {reason}") from error
        buffer[: len(block)] = block
        return len(block)


class _Recoded(io.RawIOBase):
    """UTF-16 or UTF-32 as UTF-8."""

    def __init__(self, source: BinaryIO, path: Path, encoding: str, errors: str, tally: Tally) -> None:
        self.source, self.path, self.encoding, self.tally = source, path, encoding, tally
        self.decoder = codecs.getincrementaldecoder(encoding)(errors)
        self.pending = b""
        self.position = 0
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.pending and not self.ended:
            block = self.source.read(_BLOCK)
            self.ended = not block
            try:
                text = self.decoder.decode(block, final=self.ended)
            except UnicodeDecodeError as error:
                name = self.encoding.upper()
                raise UserError(
                    f"{self.path}: not {name}, as its byte order mark says, near byte {self.position + error.start}; "
                    "convert the file, or read on with --errors replace"
                ) from error
            self.position += len(block)
            self.tally.replaced += text.count("\ufffd")
            self.pending = text.encode("utf-8")
        count = min(len(buffer), len(self.pending))
        buffer[:count] = self.pending[:count]
        self.pending = self.pending[count:]
        return count
