"""A set of text as token shards on disk, made once and memory-mapped from then on.

An entry of the cache holds, for each part, ``PART.bin`` (token ids), ``PART.offsets.bin`` (where documents begin) and,
for all, ``meta.json``. Its name is a fingerprint of everything it depends on: the documents, the split, the tokenizer
and this format's version. So it never needs invalidating, and is rebuilt only when it is not whole.

Documents are tokenised piece by piece (``sources.PIECE``): a word that straddles two pieces of a large document may
become other tokens than in one go, but the text is the same to the byte, and so is every later run's result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gossamer.cache import cached_folder, key_of
from gossamer.cores import usable_cores
from gossamer.data.config import CorpusConfig
from gossamer.data.corpus import Piece, readable_size
from gossamer.data.progress import Progress
from gossamer.data.shards import Shard, ShardMeta, ShardWriter, open_shard
from gossamer.data.tokenizer import Tokenizer
from gossamer.data.workers import Encoders
from gossamer.errors import UserError
from gossamer.reading import read_json

__all__ = ["shards_of"]

_FORMAT = 1
_BATCH = 1 << 22  # characters tokenised at once by all threads; the library's working memory is some 30 times that
_SHARE = 1 << 20  # characters that a process of several tokenises at once
_LEAST = 4 << 20  # bytes of text that are worth a process of their own


def shards_of(
    config: CorpusConfig,
    digest: str,
    parts: Sequence[str],
    read: Callable[[], Iterator[Piece]],
    total: int,
    tokenizer: Tokenizer,
    progress: Progress,
) -> dict[str, Shard]:
    """Open the shards of some text, tokenising it first if the cache has not got them.

    Args:
        config: for the cache folder and the number of processes.
        digest: of the text and its split.
        parts: which there are.
        read: gives the text.
        total: its UTF-8 bytes.
        tokenizer: for all of it.
        progress: told about tokenising.

    Raises:
        UserError: a part would be without text, text that cannot be encoded, or a process or the disk that fails.
    """
    fingerprint = key_of(_FORMAT, digest, tokenizer.fingerprint)
    opened: dict[str, Shard] = {}

    def valid(folder: Path) -> bool:
        try:
            meta = read_json(folder / "meta.json", dict[str, ShardMeta])
            found = {part: open_shard(folder, part, meta[part], fingerprint) for part in parts}
        except (OSError, ValueError, KeyError):  # absent, or not as this module writes it
            return False
        opened.update(found)
        return True

    def build(folder: Path) -> None:
        with progress.stage(f"tokenising {readable_size(total)}", total) as advance:
            meta = _tokenise(folder, parts, read(), total, tokenizer, config.workers, advance)
        (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    folder = config.cache_folder() / "shards" / fingerprint
    cached_folder(folder, valid, build)
    if not opened and not valid(folder):
        raise UserError(f"{folder}: vanished while it was being opened; start again")
    return opened


def _tokenise(
    folder: Path,
    parts: Sequence[str],
    pieces: Iterator[Piece],
    total: int,
    tokenizer: Tokenizer,
    workers: int,
    advance: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """Write each part's tokens and offsets into ``folder``; returns what ``meta.json`` tells of them."""
    writers = {part: ShardWriter(folder, part, tokenizer) for part in parts}
    workers = min(workers or usable_cores(), total // _LEAST)
    with ExitStack() as stack:
        for writer in writers.values():
            stack.enter_context(writer.file)
        encoded: Iterator[tuple[list[Piece], Sequence[Sequence[int] | npt.NDArray[Any]]]]
        if workers > 1:
            encoded = stack.enter_context(Encoders(tokenizer, workers)).encode(_batches(pieces, _SHARE))
        else:
            encoded = (
                (batch, tokenizer.encode_batch([piece.text for piece in batch])) for batch in _batches(pieces, _BATCH)
            )
        for batch, ids_of_pieces in encoded:
            for piece, ids in zip(batch, ids_of_pieces, strict=True):
                writers[piece.part].add(piece, ids)
            advance(sum(len(piece.text.encode()) for piece in batch))
        meta = {part: writer.finish() for part, writer in writers.items()}
    if sum(writer.num_bytes for writer in writers.values()) != total:
        raise UserError("the corpus changed while it was being read; start again when its files are at rest")
    for part, writer in writers.items():
        if len(writer.starts) == 1:
            raise UserError(
                f"the corpus is too small: its {total} bytes leave no text for {part}; give more with --data"
            )
    return meta


def _batches(pieces: Iterator[Piece], size: int) -> Iterator[list[Piece]]:
    """Pieces of at least ``size`` characters together, except for the last ones."""
    batch: list[Piece] = []
    length = 0
    for piece in pieces:
        batch.append(piece)
        length += len(piece.text)
        if length >= size:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
