"""Tokens on disk: files that are written once and mapped into memory, and mixtures of several.

Each part of a set of text, "train" or "validation", has two files: `PART.bin` with the token ids and
`PART.offsets.bin` with the places where documents begin.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.cache import json_digest
from gossamer.data.corpus import Chunk
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.reading import open_to_read

__all__ = ["Mixture", "TokenFile", "TokenFileMeta", "TokenFileWriter", "open_token_file", "token_dtype"]


@dataclass(frozen=True, eq=False)
class TokenFile:
    """Tokenized documents, each `[eot] t1 ... tn [eot]`.

    Attributes:
        tokens: uint16 or uint32 [num_tokens], all documents one after the other
        offsets: int64 [num_documents + 1]; document d is `tokens[offsets[d]:offsets[d + 1]]`
        num_bytes: UTF-8 bytes of the documents' text
        fingerprint: hash of the text, its split and the tokenizer; another fingerprint means other data
        file: the open file that `tokens` are mapped from; None for an array in memory
    """

    tokens: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    num_bytes: int
    fingerprint: str
    file: BinaryIO | None = None

    def read(self, begin: int, count: int) -> npt.NDArray[Any]:
        """Read the tokens `[begin, begin + count)` from the file, not through its memory map.

        If the file was cut short, or its disk is gone, access through a map kills the process (SIGBUS). A file that was
        removed or replaced stays readable for as long as it is open. A file that is overwritten in place goes
        unnoticed.

        Raises:
            UserError: the file is shorter than it was, or cannot be read any more.
        """
        if self.file is None:
            return self.tokens[begin : begin + count]
        size = count * self.tokens.itemsize
        remedy = "put its disk right and go on with --resume: a damaged cache is made again"
        try:
            raw = os.pread(self.file.fileno(), size, begin * self.tokens.itemsize)
        except OSError as error:
            raise UserError(f"{self.file.name}: can no longer be read ({error.strerror}); {remedy}") from error
        if len(raw) < size:
            raise UserError(f"{self.file.name}: was cut short while it was in use; {remedy}")
        return np.frombuffer(raw, self.tokens.dtype)

    @property
    def num_tokens(self) -> int:
        """The number of tokens, delimiters included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """The number of documents, none of which is empty."""
        return len(self.offsets) - 1


def token_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """Return the smallest dtype that holds every token id."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


class TokenFileMeta(TypedDict):
    """What `meta.json` says about one part: dtype and number of its tokens, number of documents, bytes of text."""

    dtype: Literal["uint16", "uint32"]
    tokens: int
    documents: int
    bytes: int


class TokenFileWriter:
    """Writes the files of one part, document by document.

    Args:
        folder: where the files are written
        part: the name of the part
        tokenizer: gives the dtype and the delimiter
    """

    def __init__(self, folder: Path, part: str, tokenizer: Tokenizer) -> None:
        self.folder, self.part = folder, part
        self.dtype = token_dtype(tokenizer)
        self.delimiter = tokenizer.eot_id
        self.file: BinaryIO = open(folder / f"{part}.bin", "wb")  # noqa: SIM115 (closed by the caller)
        self.starts = array("q")
        self.num_tokens = self.num_bytes = 0

    def add(self, chunk: Chunk, ids: Sequence[int] | npt.NDArray[Any]) -> None:
        """Continue the document with a chunk, or end it and begin the next one."""
        if chunk.begins_document:
            self._write([self.delimiter] * (2 if self.starts else 1))
            self.starts.append(self.num_tokens - 1)
        self._write(ids)
        self.num_bytes += len(chunk.text.encode())

    def finish(self) -> dict[str, Any]:
        """End the last document, write the offsets, and return what `meta.json` says about the part."""
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


def open_token_file(folder: Path, part: str, meta: TokenFileMeta, fingerprint: str) -> TokenFile:
    """Map the tokens of one part into memory.

    Raises:
        ValueError: a file does not have the size that was written.
    """
    tokens_file, offsets_file = folder / f"{part}.bin", folder / f"{part}.offsets.bin"
    dtype, num_tokens, num_documents = np.dtype(meta["dtype"]), meta["tokens"], meta["documents"]
    sizes = (tokens_file.stat().st_size, offsets_file.stat().st_size)
    if sizes != (num_tokens * dtype.itemsize, (num_documents + 1) * 8):
        raise ValueError("damaged token file")
    file = open_to_read(tokens_file)  # stays open as long as the TokenFile lives
    tokens = np.memmap(file, dtype, mode="r", shape=(num_tokens,))
    offsets = np.fromfile(offsets_file, np.int64)
    return TokenFile(tokens, offsets, meta["bytes"], json_digest(fingerprint, part), file)


class Mixture:
    """Sets of text to learn from, by name, each with its share of the training tokens.

    Args:
        token_files: the tokens of each set, all from the same tokenizer
        weights: the share of each set in the training tokens, relative to the others; equal shares by default. Sets
            with weight 0 are left out

    Raises:
        UserError: a weight is negative, or none is positive.
    """

    def __init__(self, token_files: Mapping[str, TokenFile], weights: Mapping[str, float] | None = None) -> None:
        weights = dict.fromkeys(token_files, 1.0) if weights is None else weights
        assert weights.keys() == token_files.keys()
        for name, weight in weights.items():
            if not weight >= 0:
                raise UserError(f"sets.{name}.weight = {weight}: must be >= 0")
        self.token_files: dict[str, TokenFile] = {name: file for name, file in token_files.items() if weights[name]}
        self.weights: dict[str, float] = {name: float(weights[name]) for name in self.token_files}
        if not self.token_files:
            raise UserError("sets: all weights are 0, and nothing is left to train on; give one of them a weight > 0")

    @property
    def num_tokens(self) -> int:
        """The number of tokens in all sets, delimiters included."""
        return sum(file.num_tokens for file in self.token_files.values())

    @property
    def num_documents(self) -> int:
        """The number of documents in all sets."""
        return sum(file.num_documents for file in self.token_files.values())

    @property
    def num_bytes(self) -> int:
        """The UTF-8 bytes of the text of all sets."""
        return sum(file.num_bytes for file in self.token_files.values())
