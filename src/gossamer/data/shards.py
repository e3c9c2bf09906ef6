"""Tokenised documents on disk, memory-mapped: ``PART.bin`` (ids) and ``PART.offsets.bin`` (where documents begin)."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.cache import key_of
from gossamer.data.corpus import Piece
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.reading import open_to_read

__all__ = ["Shard", "ShardMeta", "ShardWriter", "open_shard", "token_dtype"]


@dataclass(frozen=True, eq=False)
class Shard:
    """Tokenised documents, each ``[eot] t1 ... tn [eot]``.

    Args:
        tokens: uint16 or uint32 [num_tokens], all documents one after the other.
        offsets: int64 [num_documents + 1]; document d is ``tokens[offsets[d]:offsets[d + 1]]``.
        num_bytes: UTF-8 bytes of the documents' text.
        fingerprint: of content and tokenizer; a changed one means other data.
        file: where ``tokens`` are mapped from; None for an array that lies in memory.
    """

    tokens: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    num_bytes: int
    fingerprint: str
    file: BinaryIO | None = None

    def read(self, begin: int, count: int) -> npt.NDArray[Any]:
        """Tokens ``[begin, begin + count)``, read from the file and not through its memory map.

        A map answers a file that was cut short, or a disk that is gone, by killing the process (SIGBUS). A file that
        was removed or replaced stays readable for as long as it is open. What is not noticed is a file that somebody
        writes over in place.

        Raises:
            UserError: the file is shorter than it was, or cannot be read any more.
        """
        if self.file is None:
            return self.tokens[begin : begin + count]
        size = count * self.tokens.itemsize
        remedy = "put its disk right and go on with --resume: a damaged cache is made anew"
        try:
            raw = os.pread(self.file.fileno(), size, begin * self.tokens.itemsize)
        except OSError as error:
            raise UserError(f"{self.file.name}: can no longer be read ({error.strerror}); {remedy}") from error
        if len(raw) < size:
            raise UserError(f"{self.file.name}: was cut short while it was in use; {remedy}")
        return np.frombuffer(raw, self.tokens.dtype)

    @property
    def num_tokens(self) -> int:
        """Tokens, delimiters included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents, none of them empty."""
        return len(self.offsets) - 1


def token_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest type that holds every id."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


class ShardMeta(TypedDict):
    """What ``meta.json`` tells of one part: the type and the number of its tokens, its documents, its text's bytes."""

    dtype: Literal["uint16", "uint32"]
    tokens: int
    documents: int
    bytes: int


class ShardWriter:
    """Appends documents to a shard's files."""

    def __init__(self, folder: Path, part: str, tokenizer: Tokenizer) -> None:
        self.folder, self.part = folder, part
        self.dtype = token_dtype(tokenizer)
        self.delimiter = tokenizer.eot_id
        self.file: BinaryIO = open(folder / f"{part}.bin", "wb")  # noqa: SIM115 (closed by the caller)
        self.starts = array("q")
        self.num_tokens = self.num_bytes = 0

    def add(self, piece: Piece, ids: Sequence[int] | npt.NDArray[Any]) -> None:
        """Continue the document, or end it and begin the next one."""
        if piece.first:
            self._write([self.delimiter] * (2 if self.starts else 1))
            self.starts.append(self.num_tokens - 1)
        self._write(ids)
        self.num_bytes += len(piece.text.encode())

    def finish(self) -> dict[str, Any]:
        """End the last document and write the offsets."""
        if self.starts:
            self._write([self.delimiter])
        self.file.flush()
        self.starts.append(self.num_tokens)
        # not ndarray.tofile, which hides why a write failed
        (self.folder / f"{self.part}.offsets.bin").write_bytes(np.asarray(self.starts, np.int64).data)
        return {
            "dtype": self.dtype.name,
            "tokens": self.num_tokens,
            "documents": len(self.starts) - 1,
            "bytes": self.num_bytes,
        }

    def _write(self, ids: Sequence[int] | npt.NDArray[Any]) -> None:
        self.file.write(np.asarray(ids, self.dtype).data)
        self.num_tokens += len(ids)


def open_shard(folder: Path, part: str, meta: ShardMeta, fingerprint: str) -> Shard:
    """Memory-map one part's tokens; ValueError if a file has not the size that was written."""
    tokens_file, offsets_file = folder / f"{part}.bin", folder / f"{part}.offsets.bin"
    dtype, num_tokens, num_documents = np.dtype(meta["dtype"]), meta["tokens"], meta["documents"]
    sizes = (tokens_file.stat().st_size, offsets_file.stat().st_size)
    if sizes != (num_tokens * dtype.itemsize, (num_documents + 1) * 8):
        raise ValueError("damaged shard")
    file = open_to_read(tokens_file)  # open for as long as the shard is
    tokens = np.memmap(file, dtype, mode="r", shape=(num_tokens,))
    offsets = np.fromfile(offsets_file, np.int64)
    return Shard(tokens, offsets, meta["bytes"], key_of(fingerprint, part), file)
