"""A corpus as token shards on disk, made once and memory-mapped from then on.

An entry of the cache holds, for each part, ``PART.bin`` (token ids), ``PART.offsets.bin`` (where documents begin) and,
for all, ``meta.json``. Its name is a fingerprint of everything it depends on: the documents, the split, the tokenizer
and this format's version. So it never needs invalidating, and is rebuilt only when it is not whole.

Documents are tokenised piece by piece (``sources.PIECE``): a word that straddles two pieces of a large document may
become other tokens than in one go, but the text is the same to the byte, and so is every later run's result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from gossamer.data.cache import cached_folder, key_of
from gossamer.data.config import CorpusConfig
from gossamer.data.corpus import Piece, megabytes, open_corpus, split_rule
from gossamer.data.progress import Progress
from gossamer.data.shards import Shard, ShardWriter, open_shard
from gossamer.data.tokenizer import Tokenizer, char_tokenizer, train_bpe
from gossamer.errors import UserError

__all__ = ["Dataset", "Shard", "prepare", "prepare_one"]

_FORMAT = 1
_BATCH = 1 << 22  # characters tokenised at once; the library's working memory is some 30 times that
_SAMPLE = 64 << 20  # bytes of text that are plenty to train a BPE on


@dataclass(frozen=True, eq=False)
class Dataset:
    """A corpus ready to train on.

    Args:
        train: what to learn from.
        validation: what to measure on; no text of it trained the tokenizer.
        tokenizer: of both.
        fingerprint: of documents, split and tokenizer (hex).
        description: one line for people.
    """

    train: Shard
    validation: Shard
    tokenizer: Tokenizer
    fingerprint: str
    description: str


def prepare(config: CorpusConfig, tokenizer: Tokenizer | None = None, progress: bool = True) -> Dataset:
    """Read, split and tokenise the corpus, or open what an earlier call has left in the cache.

    Args:
        config: which text, and how.
        tokenizer: use this one instead of the configuration's, as a resumed run does with its own.
        progress: tell on standard error about stages that take long.

    Raises:
        UserError: anything wrong with the text, the tokenizer or the cache folder, in one line.
    """
    report = Progress(progress)
    validation = open_corpus(config.validation_paths, config, report) if config.validation_paths else None
    corpus = open_corpus(config.paths, config, report, without=validation)
    rule = "all" if validation else split_rule(corpus)
    digest = key_of(corpus.digest, rule, validation.digest if validation else None)
    total = corpus.num_bytes + (validation.num_bytes if validation else 0)

    def read() -> Iterator[Piece]:
        return chain(corpus.pieces(rule), validation.pieces("all", "validation") if validation else ())

    if tokenizer is None:
        tokenizer = _tokenizer(config, digest, read, total, report)
    fingerprint = key_of(_FORMAT, digest, tokenizer.fingerprint)
    shards = _shards(config, fingerprint, ("train", "validation"), read, total, tokenizer, report)
    train, held_out = shards["train"], shards["validation"]
    parts = "no --data given: " if not config.paths else ""
    how = {"documents": "about a tenth of the documents", "tails": "the last tenth of every document"}
    held = how.get(rule, ", ".join(config.validation_paths))
    description = (
        f"{parts}{corpus.name}, {_count(corpus.num_documents)}, {megabytes(corpus.num_bytes)}; "
        f"{train.num_tokens:,} tokens to train on, {held_out.num_tokens:,} held out ({held}); "
        f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size:,}"
    )
    return Dataset(train, held_out, tokenizer, fingerprint, description)


def prepare_one(paths: Iterable[str], config: CorpusConfig, tokenizer: Tokenizer, progress: bool = True) -> Shard:
    """Tokenise all text of ``paths`` as one shard, nothing held out, as for measuring a finished model on it."""
    report = Progress(progress)
    corpus = open_corpus(paths, config, report)
    fingerprint = key_of(_FORMAT, corpus.digest, tokenizer.fingerprint)
    shards = _shards(config, fingerprint, ("train",), lambda: corpus.pieces("all"), corpus.num_bytes, tokenizer, report)
    return shards["train"]


def _tokenizer(
    config: CorpusConfig, digest: str, read: Callable[[], Iterator[Piece]], total: int, progress: Progress
) -> Tokenizer:
    """The configured tokenizer: loaded, or trained on the training text once for each corpus."""
    if config.tokenizer not in ("bpe", "char"):
        return Tokenizer.load(config.tokenizer)
    loaded: list[Tokenizer] = []

    def valid(folder: Path) -> bool:
        try:
            loaded.append(Tokenizer.load(folder))
        except UserError:  # not there, or damaged
            return False
        return True

    def build(folder: Path) -> None:
        with progress.stage(f"training a {config.tokenizer} tokenizer", total) as advance:
            texts = (piece.text for piece in _advancing(read(), advance) if piece.part == "train")
            made = (
                char_tokenizer(texts)
                if config.tokenizer == "char"
                else train_bpe(_spread(texts, total), config.vocab_size)
            )
        made.save(folder)

    size = config.vocab_size if config.tokenizer == "bpe" else None
    folder = config.cache_folder() / "tokenizers" / key_of(_FORMAT, digest, config.tokenizer, size)
    cached_folder(folder, valid, build)
    return loaded[-1] if loaded else Tokenizer.load(folder)


def _spread(texts: Iterable[str], total: int) -> Iterator[str]:
    """About ``_SAMPLE`` bytes of ``texts``, evenly spread over all ``total`` bytes; everything if it is not more."""
    seen = taken = 0
    for text in texts:
        size = len(text.encode())
        if taken * total <= seen * _SAMPLE or total <= _SAMPLE:
            taken += size
            yield text
        seen += size


def _shards(
    config: CorpusConfig,
    fingerprint: str,
    parts: tuple[str, ...],
    read: Callable[[], Iterator[Piece]],
    total: int,
    tokenizer: Tokenizer,
    progress: Progress,
) -> dict[str, Shard]:
    """Open the entry ``fingerprint`` of the cache, tokenising what ``read`` gives first if it is not there."""
    opened: dict[str, Shard] = {}

    def valid(folder: Path) -> bool:
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            found = {part: open_shard(folder, part, meta[part], fingerprint) for part in parts}
        except (OSError, ValueError, KeyError, TypeError):  # absent, or not as this module writes it
            return False
        opened.update(found)
        return True

    def build(folder: Path) -> None:
        with progress.stage(f"tokenising {megabytes(total)}", total) as advance:
            meta = _tokenise(folder, parts, read(), total, tokenizer, advance)
        (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    folder = config.cache_folder() / "shards" / fingerprint
    cached_folder(folder, valid, build)
    if not opened and not valid(folder):
        raise UserError(f"{folder}: vanished while it was being opened; start again")
    return opened


def _tokenise(
    folder: Path,
    parts: tuple[str, ...],
    pieces: Iterator[Piece],
    total: int,
    tokenizer: Tokenizer,
    advance: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """Write each part's tokens and offsets into ``folder``; returns what ``meta.json`` tells of them."""
    writers = {part: ShardWriter(folder, part, tokenizer) for part in parts}
    try:
        for batch in _batches(pieces):
            for piece, ids in zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True):
                writers[piece.part].add(piece, ids)
            advance(sum(len(piece.text.encode()) for piece in batch))
        meta = {part: writer.finish() for part, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.file.close()
    if sum(writer.num_bytes for writer in writers.values()) != total:
        raise UserError("the corpus changed while it was being read; start again when its files are at rest")
    for part, writer in writers.items():
        if len(writer.starts) == 1:
            raise UserError(
                f"the corpus is too small: its {total} bytes leave no text for {part}; give more with --data"
            )
    return meta


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _advancing(pieces: Iterator[Piece], advance: Callable[[int], None]) -> Iterator[Piece]:
    for piece in pieces:
        yield piece
        advance(len(piece.text.encode()))


def _count(documents: int) -> str:
    return "1 document" if documents == 1 else f"{documents:,} documents"
