"""Tokenised documents on disk, memory-mapped: ``PART.bin`` (ids) and ``PART.offsets.bin`` (where documents begin)."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gossamer.data.cache import key_of
from gossamer.data.corpus import Piece
from gossamer.data.tokenizer import Tokenizer

__all__ = ["Shard", "ShardWriter", "open_shard"]


@dataclass(frozen=True, eq=False)
class Shard:
    """Tokenised documents, each ``[eot] t1 ... tn [eot]``.

    Args:
        tokens: uint16 or uint32 [num_tokens], all documents one after the other.
        offsets: int64 [num_documents + 1]; document d is ``tokens[offsets[d]:offsets[d + 1]]``.
        num_bytes: UTF-8 bytes of the documents' text.
        fingerprint: of content and tokenizer; a changed one means other data.
    """

    tokens: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    num_bytes: int
    fingerprint: str

    @property
    def num_tokens(self) -> int:
        """Tokens, delimiters included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents, none of them empty."""
        return len(self.offsets) - 1


class ShardWriter:
    """Appends documents to a shard's files."""

    def __init__(self, folder: Path, part: str, tokenizer: Tokenizer) -> None:
        self.folder, self.part = folder, part
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self.delimiter = tokenizer.eot_id
        self.file: BinaryIO = open(folder / f"{part}.bin", "wb")  # noqa: SIM115 (closed by the caller)
        self.starts = array("q")
        self.num_tokens = self.num_bytes = 0

    def add(self, piece: Piece, ids: list[int]) -> None:
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

    def _write(self, ids: list[int]) -> None:
        self.file.write(np.asarray(ids, self.dtype).data)
        self.num_tokens += len(ids)


def open_shard(folder: Path, part: str, meta: dict[str, Any], fingerprint: str) -> Shard:
    """Memory-map one part; ValueError if a file has not the size that was written."""
    tokens_file, offsets_file = folder / f"{part}.bin", folder / f"{part}.offsets.bin"
    dtype, num_tokens, num_documents = np.dtype(meta["dtype"]), meta["tokens"], meta["documents"]
    sizes = (tokens_file.stat().st_size, offsets_file.stat().st_size)
    if sizes != (num_tokens * dtype.itemsize, (num_documents + 1) * 8):
        raise ValueError("damaged shard")
    tokens = np.memmap(tokens_file, dtype, mode="r", shape=(num_tokens,))
    offsets = np.memmap(offsets_file, np.int64, mode="r", shape=(num_documents + 1,))
    return Shard(tokens, offsets, meta["bytes"], key_of(fingerprint, part))
