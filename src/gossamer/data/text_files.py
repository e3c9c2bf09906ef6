"""One file as Unicode text, a block or a line at a time, whatever its compression and encoding.

The bytes are decompressed, recoded to UTF-8 where a byte order mark says UTF-16 or UTF-32, and decoded. However large
the file is and however far it unpacks, only one block of it is in memory.
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
from gossamer.units import size

__all__ = ["COMPRESSED", "DecodeStats", "content_suffix", "decode_utf8", "open_utf8", "text_blocks", "text_lines"]

_BUFFER = 1 << 20  # bytes that are decompressed or recoded at once
_BLOCK = 1 << 20  # bytes that are decoded at once
_MAX_LINE = 1 << 28  # bytes

COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst"})
"""Suffixes of files that are decompressed while they are read; the suffix before it says what the file holds."""

# Longest first: UTF-32's little-endian mark begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class DecodeStats:
    """What was found out about a file's encoding while it was read.

    Attributes:
        replaced: number of characters that became U+FFFD because their bytes were not of the file's encoding
        encoding: the encoding that the byte order mark names; "utf-8" without one
    """

    def __init__(self) -> None:
        self.replaced = 0
        self.encoding = "utf-8"


def content_suffix(path: Path) -> str:
    """Return the suffix that says what a file holds, in lower case: `.jsonl` for `a.jsonl`, `a.JSONL`, `a.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def text_blocks(path: Path, errors: str, stats: DecodeStats) -> Iterator[str]:
    """Yield the text of a file, a block at a time, without its byte order mark.

    Args:
        path: the file
        errors: "strict" or "replace"
        stats: is updated with what had to be replaced

    Raises:
        UserError: the file cannot be read, or is not UTF-8 while `errors` is "strict".
    """
    position, at_start, rest = 0, True, b""
    with open_utf8(path, errors, stats) as file:
        while True:
            block = file.read(_BLOCK)
            raw = rest + block
            try:
                text, used = decode_utf8(raw, errors, stats, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(str(path), position + error.start) from error
            position += used
            rest = raw[used:]  # bytes of a character that the end of the block cut in two
            if at_start and text:
                text, at_start = text.removeprefix("\ufeff"), False
            yield text
            if not block:
                return


def text_lines(path: Path, errors: str, stats: DecodeStats) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their line ends, each with its number, from 1; raises as `text_blocks` does."""
    position = number = 0
    with open_utf8(path, errors, stats) as file:
        while raw := file.readline(_MAX_LINE + 1):
            number += 1
            if len(raw) > _MAX_LINE:
                raise UserError(f"{path}, line {number}: is longer than {size(_MAX_LINE)}; cut it into documents")
            try:
                line, _ = decode_utf8(raw, errors, stats)
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{path}, line {number}", position + error.start) from error
            position += len(raw)
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def decode_utf8(raw: bytes, errors: str, stats: DecodeStats, final: bool = True) -> tuple[str, int]:
    """Decode UTF-8, and return the text and how many of the bytes it used: all of them if they are `final`."""
    text, used = codecs.utf_8_decode(raw, errors, final)
    if errors == "replace" and "\ufffd" in text:
        stats.replaced += text.count("\ufffd") - raw[:used].count("\ufffd".encode())
    return text, used


def _not_utf8(where: str, offset: int) -> UserError:
    return UserError(f"{where}: not UTF-8 at byte {offset}; convert the file, or read on with --errors replace")


@contextmanager
def open_utf8(path: Path, errors: str, stats: DecodeStats) -> Iterator[BinaryIO]:
    """Open a file whose bytes are read as UTF-8, whatever its compression and byte order mark.

    Args:
        path: the file
        errors: "strict" or "replace", for UTF-16 and UTF-32; a UTF-8 file is passed on unchecked
        stats: is updated with what had to be replaced

    Raises:
        UserError: on opening or on reading: there is no such file, its compression is damaged or cut short, or it is
            not in the encoding that its byte order mark names.
    """
    with open_to_read(path, "check its permissions, or leave it out") as raw:
        stream: Any = io.BufferedReader(_Decompressed(_decompressor(raw, path), path), _BUFFER)
        head = stream.peek(4)[:4]
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), None)
        if encoding is not None:
            stats.encoding = encoding
            stream = io.BufferedReader(_Recoded(stream, path, encoding, errors, stats), _BUFFER)
        yield cast(BinaryIO, stream)


def _decompressor(raw: io.BufferedReader, path: Path) -> Any:
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
    """A decompressor of the standard library (since Python 3.14), or else of whichever library is installed."""
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
    raise UserError(f"{path}: decompressing it needs a library; install one with: pip install zstandard")


class _Decompressed(io.RawIOBase):
    """The bytes of a decompressor, whose exceptions become one line that names the file."""

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
                reason = f"damaged or cut short ({' '.join(str(error).split())}); compress it again, or leave it out"
            else:
                raise
            raise UserError(f"{self.path}: {reason}") from error
        buffer[: len(block)] = block
        return len(block)


class _Recoded(io.RawIOBase):
    """The bytes of a UTF-16 or UTF-32 stream as UTF-8."""

    def __init__(self, source: BinaryIO, path: Path, encoding: str, errors: str, stats: DecodeStats) -> None:
        self.source, self.path, self.encoding, self.stats = source, path, encoding, stats
        self.decoder = codecs.getincrementaldecoder(encoding)(errors)
        self.pending = b""
        self.position = 0
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.pending and not self.ended:
            block = self.source.read(_BUFFER)
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
            self.stats.replaced += text.count("\ufffd")
            self.pending = text.encode("utf-8")
        count = min(len(buffer), len(self.pending))
        buffer[:count] = self.pending[:count]
        self.pending = self.pending[count:]
        return count
