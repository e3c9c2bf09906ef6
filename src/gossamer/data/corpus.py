"""Many files and folders as one corpus: which files, what is in them, which part of it is held out.

A corpus is known by its content: every file is read once and summed up in a ``FileScan``, which is kept by path, size
and modification time, so a later start reads no file again. Moving or copying a corpus does not change its
fingerprint.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.cache import key_of, read_sealed, write_sealed
from gossamer.data.config import CorpusConfig
from gossamer.data.files import Passed, find_files, standard_library
from gossamer.data.progress import Progress
from gossamer.data.sources import INCIDENTAL, NoTextField, is_binary, read_documents
from gossamer.data.streams import Tally, kind_of
from gossamer.errors import UserError

__all__ = ["HELD_OUT", "Corpus", "FileScan", "Part", "Piece", "Rule", "open_corpus", "readable_size", "split_rule"]

HELD_OUT = 10
"""One document in so many, or the last one of so many equal parts of every document, is held out."""

_UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3}
_NO_FIELD = "without a field"
_FEW = 20  # documents below which single ones are too coarse a part to hold out
_SMALLEST_SHARE, _LARGEST_SHARE = 1 / 30, 1 / 3  # of the text; whole documents are held out when they are between
_SCAN_FORMAT = 2
_RACY = 2.0  # seconds: a file modified so shortly before its scan could change again under the same time stamp

Part = Literal["train", "validation"]
Rule = Literal["documents", "tails", "all"]


@dataclass(frozen=True)
class FileScan:
    """What one reading of a file found.

    Args:
        digest: of its documents (hex); files with equal documents have equal digests, whatever their format.
        documents: documents with at least one character.
        num_bytes: UTF-8 bytes of their text.
        characters: characters of their text.
        held_documents: documents that the hash would hold out.
        held_bytes: UTF-8 bytes of the text of those.
        replaced: characters that are U+FFFD because their bytes were not of the file's encoding.
        encoding: which that is.
    """

    digest: str
    documents: int
    num_bytes: int
    characters: int
    held_documents: int
    held_bytes: int
    replaced: int = 0
    encoding: str = "utf-8"


class _Kept(TypedDict):
    """A scan as the cache keeps it: of a file of that size and time of change; a word why it was passed over."""

    stamp: list[int]
    scan: FileScan | str


class Piece(NamedTuple):
    """A stretch of text of one part of the corpus; ``first`` begins a document, ``file`` is where it stands."""

    part: Part
    first: bool
    text: str
    file: Path | None = None


@dataclass(frozen=True)
class Corpus:
    """Files with their scans, in reading order.

    Args:
        name: what people call it.
        files: each file and what it holds; files without a document are left out.
        text_field: of JSONL and Parquet.
        errors: "strict" or "replace".
    """

    name: str
    files: tuple[tuple[Path, FileScan], ...]
    text_field: str
    errors: str

    @property
    def num_documents(self) -> int:
        """Documents in all files."""
        return sum(scan.documents for _, scan in self.files)

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all documents' text."""
        return sum(scan.num_bytes for _, scan in self.files)

    @property
    def digest(self) -> str:
        """Fingerprint of the documents in their order."""
        return key_of([scan.digest for _, scan in self.files])

    def pieces(self, rule: Rule, part: Part = "train") -> Iterator[Piece]:
        """Read the corpus, telling for every piece of text to which part it belongs.

        Args:
            rule: "documents" holds out about every tenth document, "tails" the last tenth of every document's
                characters (the training text of a document comes first), "all" gives everything to ``part``.
            part: where "all" puts the text.
        """
        for path, scan in self.files:
            for document in read_documents(path, self.text_field, self.errors):
                if rule == "tails":
                    # a text file's only document is a stream whose length the scan knows; records are in memory
                    length = scan.characters if scan.documents == 1 else sum(map(len, document))
                    for piece in _tailed(document, length * (HELD_OUT - 1) // HELD_OUT):
                        yield piece._replace(file=path)
                    continue
                chosen = part
                for number, text in enumerate(document):
                    if number == 0 and rule == "documents":
                        chosen = "validation" if _held_out(text) else "train"
                    yield Piece(chosen, number == 0, text, path)


def open_corpus(
    paths: Iterable[str], config: CorpusConfig, progress: Progress, without: Iterable[Corpus] = ()
) -> Corpus:
    """Find the files of ``paths`` (none: the standard library's source) and scan those that are new or changed.

    Args:
        paths: files, folders and Hub datasets; a file that is reached twice counts once.
        config: for ``text_field``, ``errors`` and the cache folder.
        progress: told about the scan.
        without: corpora whose files are left out of this one.

    Raises:
        UserError: a path is missing, unreadable, binary or holds no text, or a document is malformed.
    """
    given = tuple(paths)
    errors = config.errors
    if given:
        passed = Passed()
        found = [file for path in given for file in find_files(path, config, progress, passed)]
        name = ", ".join(given) if len(given) <= 3 else f"{given[0]}, {given[1]} and {len(given) - 2} more"
    else:
        passed, found = Passed(), list(standard_library())
        name = f"source code of Python {sysconfig.get_python_version()}'s standard library"
        errors = "replace"  # nobody who gave no text should have to mend it
    excluded = {path for corpus in without for path, _ in corpus.files}
    named = {file for file, is_named in found if is_named}
    unique = [file for file in dict.fromkeys(file for file, _ in found) if file not in excluded]
    scans = _scan_all(unique, named, config, errors, progress)
    files = tuple(
        (file, scan) for file, scan in zip(unique, scans, strict=True) if isinstance(scan, FileScan) and scan.documents
    )
    _tell(name, unique, scans, passed, progress)
    if not files:
        left = " that is not held out" if excluded else ""
        beside = f" (it holds {passed.describe()})" if passed.kinds else ""
        raise UserError(f"{name}: holds no text{left}; name files or folders with text, code, JSONL or Parquet{beside}")
    return Corpus(name, files, config.text_field, errors)


def _tell(name: str, files: list[Path], scans: list[FileScan | str], passed: Passed, progress: Progress) -> None:
    """Say what was passed over and what was replaced.

    Raises:
        UserError: most of the bytes are in files of records without the field that is read: which one is it?
    """
    sizes = {"read": 0, "asked": 0}
    recoded = Passed()
    first: tuple[Path, str] | None = None
    for file, scan in zip(files, scans, strict=True):
        if isinstance(scan, str):
            passed.add(scan.split(", which has")[0], file.name)
            if scan.startswith(_NO_FIELD):
                sizes["asked"] += _stat(file).st_size
                first = first or (file, scan)
            continue
        sizes["read"] += scan.num_bytes
        if scan.encoding != "utf-8":
            recoded.add(f"in {scan.encoding.upper()}", file.name)
        if scan.replaced:
            share = f"{scan.replaced / scan.characters:.1%}"
            progress.note(
                f"{file}: {scan.replaced:,} of {scan.characters:,} characters ({share}) were not of its encoding and "
                "became U+FFFD"
            )
    if recoded.kinds:
        progress.note(f"{name}: read {recoded.describe()}, as the byte order mark says")
    if passed.kinds:
        progress.note(f"{name}: passed over {passed.describe()}")
    if first is not None and sizes["asked"] > sizes["read"]:
        file, scan = first
        raise UserError(
            f"{file}: {scan}, as most of the data of {name}; name the right one with --corpus.text_field, or name the "
            "files to train on"
        )


def split_rule(corpus: Corpus) -> Rule:
    """How to hold out a tenth: whole documents, chosen by a hash of each alone, so that neither their order nor files
    that are added move one to the other side.

    The hash takes a tenth of the documents only on the average, and of the text by their sizes. The end of every
    document is held out instead when there are fewer than 20 documents, or when the hash takes less than a third of the
    tenth of the text (the short ones of a few dozen) or more than three times as much (a few large documents among
    small ones, many copies of one). That, too, depends on no order, and each document's cut on itself alone. A corpus
    that grows may change from one rule to the other, a large one hardly ever: the more documents, the nearer the hash
    comes to a tenth of the text.

    Text is measured in UTF-8 bytes, which stand for tokens: the tokenizer is trained on one side of the split.
    """
    held = sum(scan.held_bytes for _, scan in corpus.files) / corpus.num_bytes
    whole = corpus.num_documents >= _FEW and _SMALLEST_SHARE <= held <= _LARGEST_SHARE
    return "documents" if whole else "tails"


def _held_out(first_piece: str) -> bool:
    """A tenth of all documents, chosen by their beginning alone."""
    return int.from_bytes(hashlib.blake2b(first_piece.encode(), digest_size=8).digest(), "big") % HELD_OUT == 0


def _tailed(document: Iterable[str], cut: int) -> Iterator[Piece]:
    """A document whose characters up to ``cut`` are training text and from there on validation text."""
    position, begun = 0, {"train": False, "validation": False}
    parts: tuple[Part, Part] = ("train", "validation")
    for text in document:
        inside = min(max(cut - position, 0), len(text))
        for part, share in zip(parts, (text[:inside], text[inside:]), strict=True):
            if share:
                yield Piece(part, not begun[part], share)
                begun[part] = True
        position += len(text)


def _scan_all(
    files: list[Path], named: set[Path], config: CorpusConfig, errors: str, progress: Progress
) -> list[FileScan | str]:
    """Each file's scan, or why one that was met in a folder is passed over; from the cache where nothing changed."""
    key = key_of(_SCAN_FORMAT, sorted(map(str, files)), config.text_field, errors)
    store = config.cache_folder() / "scans" / f"{key}.json"
    known = read_sealed(store, dict[str, _Kept]) or {}
    stats = [_stat(file) for file in files]
    stamps = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
    fresh = [
        str(file) in known and known[str(file)]["stamp"] == stamp for file, stamp in zip(files, stamps, strict=True)
    ]
    todo = sum(stat.st_size for stat, is_fresh in zip(stats, fresh, strict=True) if not is_fresh)
    scans: list[FileScan | str] = []
    if all(fresh):
        return [known[str(file)]["scan"] for file in files]
    entries = {}
    with progress.stage(f"reading {readable_size(todo)} of text", todo) as advance:
        for file, stat, stamp, is_fresh in zip(files, stats, stamps, fresh, strict=True):
            if is_fresh:
                scan = known[str(file)]["scan"]
            else:
                settled = time.time() - stat.st_mtime > _RACY
                scan = _scan(file, file in named, config.text_field, errors)
                advance(stat.st_size)
            scans.append(scan)
            if is_fresh or settled:
                entries[str(file)] = {"stamp": stamp, "scan": asdict(scan) if isinstance(scan, FileScan) else scan}
    write_sealed(store, entries)
    return scans


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def _scan(file: Path, is_named: bool, text_field: str, errors: str) -> FileScan | str:
    if is_binary(file):
        if is_named:
            raise UserError(
                f"{file}: binary, not text (it holds NUL bytes); give UTF-8 text, JSONL or Parquet, and UTF-16 with a "
                "byte order mark"
            )
        return "binary"
    try:
        return _summed_up(file, text_field, errors)
    except NoTextField as error:
        if is_named or kind_of(file) not in INCIDENTAL:
            raise
        fields = re.search(r"\(('.*?)\)", str(error))
        return f"{_NO_FIELD} {text_field!r} in {kind_of(file)}{f', which has {fields[1]}' if fields else ''}"


def _summed_up(file: Path, text_field: str, errors: str) -> FileScan:
    tally = Tally()
    digest = hashlib.blake2b(digest_size=16)
    documents = num_bytes = characters = held_documents = held_bytes = 0
    for document in read_documents(file, text_field, errors, tally):
        size, is_held = 0, False
        for number, text in enumerate(document):
            if number == 0:
                is_held = _held_out(text)
            raw = text.encode()
            digest.update(raw)
            size += len(raw)
            characters += len(text)
        digest.update(size.to_bytes(8, "big"))  # where a document ends is content, too
        documents += 1
        num_bytes += size
        held_documents += is_held
        held_bytes += size if is_held else 0
    return FileScan(
        digest.hexdigest(), documents, num_bytes, characters, held_documents, held_bytes, tally.replaced, tally.encoding
    )


def readable_size(num_bytes: int) -> str:
    """A size for people: ``1 byte``, ``400 bytes``, ``1.2 kB``, ``3.1 MB``."""
    if num_bytes < min(_UNITS.values()):
        return "1 byte" if num_bytes == 1 else f"{num_bytes} bytes"
    unit, value = next((unit, num_bytes / size) for unit, size in _UNITS.items() if num_bytes >= size)
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
