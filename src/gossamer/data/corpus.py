"""Many files and folders as one corpus: what the files hold, and which part of the text is held out.

A corpus is identified by its content. Every file is read once and summed up in a `FileScan`, which is cached by path,
size and modification time, so a later start reads no file again. To move or copy a corpus does not change its
fingerprint.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.cache import json_digest, read_cached_json, write_cached_json
from gossamer.data.config import CorpusConfig
from gossamer.data.documents import SETTINGS_OR_RECORDS, NoTextField, is_binary, read_documents
from gossamer.data.progress import ProgressDisplay
from gossamer.data.sources import SkippedFiles, find_files, standard_library
from gossamer.data.text_files import DecodeStats, content_suffix
from gossamer.errors import UserError
from gossamer.units import decimal_size, percent

__all__ = [
    "VALIDATION_DIVISOR",
    "Chunk",
    "Corpus",
    "FileScan",
    "Part",
    "SkipReason",
    "SplitRule",
    "open_corpus",
    "split_rule",
]

VALIDATION_DIVISOR = 10
"""A tenth is held out: one in ten documents, or the last tenth of every document."""

_MIN_DOCUMENTS = 20  # with fewer documents, whole ones are too coarse a part to hold out
_MIN_SHARE, _MAX_SHARE = 1 / 30, 1 / 3  # of the text, within which whole documents are held out
_SCAN_FORMAT = 2
_MTIME_RESOLUTION = 2.0  # seconds in which a file may change again and keep its modification time

Part = Literal["train", "validation"]
SplitRule = Literal["documents", "tails", "all"]


@dataclass(frozen=True)
class FileScan:
    """What one file holds, as found by reading it once. The cache stores these fields by their names.

    Attributes:
        digest: hash of its documents (hex); files with equal documents have equal digests, whatever their format
        documents: number of documents with at least one character
        num_bytes: UTF-8 bytes of their text
        characters: number of characters of their text
        held_documents: number of documents that the hash would hold out
        held_bytes: UTF-8 bytes of the text of the documents that the hash would hold out
        replaced: number of characters that became U+FFFD because their bytes were not of the file's encoding
        encoding: the encoding of the file
    """

    digest: str
    documents: int
    num_bytes: int
    characters: int
    held_documents: int
    held_bytes: int
    replaced: int = 0
    encoding: str = "utf-8"


@dataclass(frozen=True)
class SkipReason:
    """Why a file is skipped. The cache stores these fields by their names.

    Attributes:
        kind: what kind of file it is, for the list of what was skipped
        lacks_field: whether it holds records without the configured field
        fields: the names of the fields that its records have, as a message lists them; empty if not known
    """

    kind: str
    lacks_field: bool = False
    fields: str = ""

    def __str__(self) -> str:
        return f"{self.kind}, which has {self.fields}" if self.fields else self.kind


class _CachedScan(TypedDict):
    """A cached scan, or the reason why the file was skipped; `stamp` is the file's size and modification time."""

    stamp: list[int]
    scan: FileScan | SkipReason | str  # a sentence in place of the reason, in caches of earlier releases


class Chunk(NamedTuple):
    """Some text of one part of the corpus, which may begin a document, and the file that it was read from."""

    part: Part
    begins_document: bool
    text: str
    file: Path | None = None


@dataclass(frozen=True)
class Corpus:
    """Files and what they hold, in the order in which they are read.

    Attributes:
        name: the name of the corpus in messages
        files: each file with its scan; files without a document are left out
        text_field: the field or column that holds the text in files of records
        errors: "strict" or "replace"
    """

    name: str
    files: tuple[tuple[Path, FileScan], ...]
    text_field: str
    errors: str

    @property
    def num_documents(self) -> int:
        """The number of documents in all files."""
        return sum(scan.documents for _, scan in self.files)

    @property
    def num_bytes(self) -> int:
        """The UTF-8 bytes of the text of all documents."""
        return sum(scan.num_bytes for _, scan in self.files)

    @property
    def digest(self) -> str:
        """A hash of the documents in their order."""
        return json_digest([scan.digest for _, scan in self.files])

    def read(self, rule: SplitRule, part: Part = "train") -> Iterator[Chunk]:
        """Yield all text of the corpus in chunks, each with the part that it belongs to.

        Args:
            rule: "documents" holds out about every tenth document, "tails" the last tenth of every document's
                characters (the training text of a document comes first), "all" gives everything to `part`
            part: the part that the rule "all" gives the text to
        """
        for path, scan in self.files:
            for document in read_documents(path, self.text_field, self.errors):
                if rule == "tails":
                    # The only document of a text file is a stream, whose length the scan knows; records are in memory.
                    length = scan.characters if scan.documents == 1 else sum(map(len, document))
                    for chunk in _split_tail(document, length * (VALIDATION_DIVISOR - 1) // VALIDATION_DIVISOR):
                        yield chunk._replace(file=path)
                    continue
                document_part = part
                for number, text in enumerate(document):
                    if number == 0 and rule == "documents":
                        document_part = "validation" if _is_validation_document(text) else "train"
                    yield Chunk(document_part, number == 0, text, path)


def open_corpus(
    paths: Iterable[str], config: CorpusConfig, progress: ProgressDisplay, without: Iterable[Corpus] = ()
) -> Corpus:
    """Find the files of `paths`, or of the standard library if there are none, and scan those that are new or changed.

    Args:
        paths: files, folders and Hub datasets; a file that is reached twice counts once
        config: gives `text_field`, `errors` and the cache folder
        progress: shows how far the scan has come
        without: corpora whose files are left out of this one

    Raises:
        UserError: a path is missing, unreadable, binary or holds no text, or a document is malformed.
    """
    given = tuple(paths)
    errors = config.errors
    if given:
        skipped = SkippedFiles()
        found = [file for path in given for file in find_files(path, config, progress, skipped)]
        name = ", ".join(given) if len(given) <= 3 else f"{given[0]}, {given[1]} and {len(given) - 2} more"
    else:
        skipped, found = SkippedFiles(), list(standard_library())
        name = f"source code of Python {sysconfig.get_python_version()}'s standard library"
        errors = "replace"  # a user who gave no text should not have to mend any
    excluded = {path for corpus in without for path, _ in corpus.files}
    named = {file for file, is_named in found if is_named}
    unique = [file for file in dict.fromkeys(file for file, _ in found) if file not in excluded]
    scans = _scan_all(unique, named, config, errors, progress)
    files = tuple(
        (file, scan) for file, scan in zip(unique, scans, strict=True) if isinstance(scan, FileScan) and scan.documents
    )
    _report_scans(name, unique, scans, skipped, progress)
    if not files:
        left = " that is not held out" if excluded else ""
        beside = f" (it holds {skipped.describe()})" if skipped.kinds else ""
        raise UserError(f"{name}: holds no text{left}; name files or folders with text, code, JSONL or Parquet{beside}")
    return Corpus(name, files, config.text_field, errors)


def _report_scans(
    name: str, files: list[Path], scans: list[FileScan | SkipReason], skipped: SkippedFiles, progress: ProgressDisplay
) -> None:
    """Report what was skipped and what was replaced.

    Raises:
        UserError: most of the bytes are in files of records without the configured field.
    """
    bytes_read = bytes_without_field = 0
    recoded = SkippedFiles()
    first: tuple[Path, SkipReason] | None = None
    for file, scan in zip(files, scans, strict=True):
        if isinstance(scan, SkipReason):
            skipped.add(scan.kind, file.name)
            if scan.lacks_field:
                bytes_without_field += _stat(file).st_size
                first = first or (file, scan)
            continue
        bytes_read += scan.num_bytes
        if scan.encoding != "utf-8":
            recoded.add(f"in {scan.encoding.upper()}", file.name)
        if scan.replaced:
            share = percent(scan.replaced / scan.characters, 1)
            progress.note(
                f"{file}: {scan.replaced:,} of {scan.characters:,} characters ({share}) were not of its encoding and "
                "became U+FFFD"
            )
    if recoded.kinds:
        progress.note(f"{name}: read {recoded.describe()}, as the byte order mark says")
    if skipped.kinds:
        progress.note(f"{name}: skipped {skipped.describe()}")
    if first is not None and bytes_without_field > bytes_read:
        file, scan = first
        raise UserError(
            f"{file}: {scan}, as is most of the data of {name}; name the right one with --corpus.text_field, or name "
            "the files to train on"
        )


def split_rule(corpus: Corpus) -> SplitRule:
    """Choose how a tenth of the text is held out: as whole documents, or as the end of every document.

    Whole documents are chosen by a hash of each document alone, so neither their order nor new files move a document to
    the other side. The hash holds out a tenth of the documents on average; how much text that is depends on their
    sizes. The end of every document is held out instead if there are fewer than 20 documents, or if the hash holds out
    less than a third of a tenth of the text (a few short documents) or more than a third of all of it (a few large
    documents among small ones, or many copies of one). This rule does not depend on the order either, and the cut
    in a document depends on that document alone. A corpus that grows may change from one rule to the other, but a large
    one hardly ever does: the more documents there are, the closer the hash comes to a tenth of the text.

    Text is measured in UTF-8 bytes, not in tokens, because the tokenizer is trained on one side of the split.
    """
    share = sum(scan.held_bytes for _, scan in corpus.files) / corpus.num_bytes
    whole = corpus.num_documents >= _MIN_DOCUMENTS and _MIN_SHARE <= share <= _MAX_SHARE
    return "documents" if whole else "tails"


def _is_validation_document(first_chunk: str) -> bool:
    """Whether a document is in the tenth that is held out, which its beginning alone decides."""
    return (
        int.from_bytes(hashlib.blake2b(first_chunk.encode(), digest_size=8).digest(), "big") % VALIDATION_DIVISOR == 0
    )


def _split_tail(document: Iterable[str], cut: int) -> Iterator[Chunk]:
    """Yield a document as training text up to the character `cut` and as validation text from there on."""
    position, begun = 0, {"train": False, "validation": False}
    parts: tuple[Part, Part] = ("train", "validation")
    for text in document:
        inside = min(max(cut - position, 0), len(text))
        for part, share in zip(parts, (text[:inside], text[inside:]), strict=True):
            if share:
                yield Chunk(part, not begun[part], share)
                begun[part] = True
        position += len(text)


def _scan_all(
    files: list[Path], named: set[Path], config: CorpusConfig, errors: str, progress: ProgressDisplay
) -> list[FileScan | SkipReason]:
    """Return the scan of each file, from the cache if the file is unchanged, or the reason why it is skipped."""
    key = json_digest(_SCAN_FORMAT, sorted(map(str, files)), config.text_field, errors)
    cache_file = config.cache_folder() / "scans" / f"{key}.json"
    cached = read_cached_json(cache_file, dict[str, _CachedScan]) or {}
    known = {
        file: (entry["stamp"], scan) for file, entry in cached.items() if not isinstance(scan := entry["scan"], str)
    }
    stats = [_stat(file) for file in files]
    stamps = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
    fresh = [str(file) in known and known[str(file)][0] == stamp for file, stamp in zip(files, stamps, strict=True)]
    bytes_to_read = sum(stat.st_size for stat, is_fresh in zip(stats, fresh, strict=True) if not is_fresh)
    scans: list[FileScan | SkipReason] = []
    if all(fresh):
        return [known[str(file)][1] for file in files]
    entries = {}
    with progress.stage(f"reading {decimal_size(bytes_to_read)} of text", bytes_to_read) as advance:
        for file, stat, stamp, is_fresh in zip(files, stats, stamps, fresh, strict=True):
            if is_fresh:
                scan = known[str(file)][1]
            else:
                settled = time.time() - stat.st_mtime > _MTIME_RESOLUTION
                scan = _scan(file, file in named, config.text_field, errors)
                advance(stat.st_size)
            scans.append(scan)
            if is_fresh or settled:
                entries[str(file)] = {"stamp": stamp, "scan": asdict(scan)}
    write_cached_json(cache_file, entries)
    return scans


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def _scan(file: Path, is_named: bool, text_field: str, errors: str) -> FileScan | SkipReason:
    if is_binary(file):
        if is_named:
            raise UserError(
                f"{file}: binary, not text (it holds NUL bytes); give UTF-8 text, JSONL or Parquet, and UTF-16 with a "
                "byte order mark"
            )
        return SkipReason("binary")
    try:
        return _scan_documents(file, text_field, errors)
    except NoTextField as error:
        if is_named or content_suffix(file) not in SETTINGS_OR_RECORDS:
            raise
        return SkipReason(f"without a field {text_field!r} in {content_suffix(file)}", True, error.fields)


def _scan_documents(file: Path, text_field: str, errors: str) -> FileScan:
    stats = DecodeStats()
    digest = hashlib.blake2b(digest_size=16)
    documents = num_bytes = characters = held_documents = held_bytes = 0
    for document in read_documents(file, text_field, errors, stats):
        size, is_validation = 0, False
        for number, text in enumerate(document):
            if number == 0:
                is_validation = _is_validation_document(text)
            raw = text.encode()
            digest.update(raw)
            size += len(raw)
            characters += len(text)
        digest.update(size.to_bytes(8, "big"))  # where a document ends is part of the content
        documents += 1
        num_bytes += size
        held_documents += is_validation
        held_bytes += size if is_validation else 0
    return FileScan(
        digest.hexdigest(), documents, num_bytes, characters, held_documents, held_bytes, stats.replaced, stats.encoding
    )
