"""One file as a stream of documents: text and source code, JSONL, Parquet.

A document comes as its pieces: strings of at most ``PIECE`` characters whose concatenation is the document. Whatever a
file's size, no more than about a piece of a text file, a line of a JSONL file or a batch of rows of a Parquet file is
in memory. Pieces end at line ends where there are any, and depend on the text alone, so every pass over a file sees
the same ones.
"""

from __future__ import annotations

import codecs
import importlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from gossamer.errors import UserError, nearest

__all__ = ["BINARY_SUFFIXES", "PIECE", "is_binary", "pieces", "read_documents"]

PIECE = 1 << 18
"""Characters of a piece: two threads can share a one-megabyte document, and cuts are too rare to matter."""

_BLOCK = 1 << 20  # bytes read at once
_ROWS = 64  # Parquet rows read at once

BINARY_SUFFIXES = frozenset(
    f".{name}"
    for names in (
        ("7z", "bz2", "gz", "jar", "lz4", "rar", "tar", "tgz", "whl", "xz", "zip", "zst"),
        ("avif", "bmp", "gif", "heic", "ico", "jpeg", "jpg", "pdf", "png", "tif", "tiff", "webp"),
        ("avi", "flac", "m4a", "mkv", "mov", "mp3", "mp4", "ogg", "wav", "webm"),
        ("a", "class", "dll", "dylib", "exe", "lib", "o", "obj", "pyc", "pyd", "pyo", "so", "wasm"),
        ("bin", "ckpt", "gguf", "h5", "npy", "npz", "onnx", "pickle", "pkl", "pt", "pth", "safetensors", "sqlite"),
        ("eot", "otf", "ttf", "woff", "woff2"),
    )
    for name in names
)
"""Files that are passed over inside folders without a look."""

_JSONL = (".jsonl", ".ndjson")
_PARQUET = ".parquet"
_SURROGATE = re.compile("[\ud800-\udfff]")


def pieces(chunks: Iterable[str]) -> Iterator[str]:
    """Cut the concatenation of ``chunks`` after the last line end within every ``PIECE`` characters, else there."""
    buffer = ""
    for chunk in chunks:
        buffer += chunk
        start = 0
        while len(buffer) - start > PIECE:
            end = buffer.rfind("\n", start, start + PIECE) + 1 or start + PIECE
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield buffer


def is_binary(path: Path) -> bool:
    """Whether a file that would be read as text cannot be one: a NUL byte among its first 8,192."""
    if path.suffix.lower() in (*_JSONL, _PARQUET):
        return False
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(8192)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_documents(path: Path, text_field: str, errors: str) -> Iterator[Iterable[str]]:
    """Yield a file's documents, each as its pieces; documents without a character are left out.

    A text file is one document, whose pieces must be read before the file's next document is asked for; a JSONL line
    and a Parquet row are one document each. A byte order mark is not text and is dropped; line ends stay as they are.

    Raises:
        UserError: unreadable, not UTF-8 while ``errors`` is "strict", malformed, or without a string in ``text_field``.
    """
    try:
        if path.suffix.lower() in _JSONL:
            yield from _records(_jsonl(path, text_field, errors))
        elif path.suffix.lower() == _PARQUET:
            yield from _records(_parquet(path, text_field, errors))
        else:
            stream = pieces(_decoded(path, errors))
            for first in stream:  # a file without text yields no document
                yield _chain(first, stream)
    except OSError as error:
        raise _unreadable(path, error) from error


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _records(texts: Iterator[str]) -> Iterator[Iterable[str]]:
    for text in texts:
        if text:
            yield list(pieces([text]))


def _decoded(path: Path, errors: str) -> Iterator[str]:
    """A text file, a block at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    position, beginning = 0, True
    with open(path, "rb") as file:
        while True:
            block = file.read(_BLOCK)
            pending = len(decoder.getstate()[0])  # bytes of a character that the last block cut in two
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(str(path), position - pending + error.start) from error
            position += len(block)
            if beginning and text:
                text, beginning = text.removeprefix("\ufeff"), False
            yield text
            if not block:
                return


def _jsonl(path: Path, field: str, errors: str) -> Iterator[str]:
    position = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8", errors)
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{path}, line {number}", position + error.start) from error
            position += len(raw)
            line = line.removeprefix("\ufeff") if number == 1 else line
            if line.strip():
                yield _field_of(line, f"{path}, line {number}", field, errors)


def _field_of(line: str, where: str, field: str, errors: str) -> str:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = "nested too deeply"
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise UserError(f"{where}: not JSON ({reason}); a JSONL file holds one whole record a line") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: the record is not an object; write it as {{{json.dumps(field)}: ...}}")
    if field not in record:
        raise _no_field(where, field, record, "record")
    text = record[field]
    if not isinstance(text, str):
        raise UserError(
            f"{where}: field {field!r} holds {type(text).__name__}, not text; mend it or name another "
            "--corpus.text_field"
        )
    if "\\u" in line and _SURROGATE.search(text):  # JSON can spell half a character, UTF-8 cannot
        if errors == "strict":
            raise UserError(
                f"{where}: field {field!r} holds half of a surrogate pair, which is no character; mend it, or read on "
                "with --errors replace"
            )
        text = _SURROGATE.sub("\ufffd", text)
    return text


def _parquet(path: Path, field: str, errors: str) -> Iterator[str]:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(f"{path}: Parquet needs pyarrow; install it with: pip install 'gossamer[parquet]'") from error
    try:
        file = parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file, or a damaged one; write it anew or leave it out") from error
    with file:
        if field not in file.schema_arrow.names:
            raise _no_field(str(path), field, file.schema_arrow.names, "file")
        row = 0
        for batch in file.iter_batches(batch_size=_ROWS, columns=[field]):
            try:
                values = batch.column(0).cast(arrow.binary()).to_pylist()
            except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
                raise UserError(
                    f"{path}: column {field!r} holds {batch.column(0).type}, not text; name another --corpus.text_field"
                ) from error
            for value in values:
                row += 1
                if value is None:
                    raise UserError(f"{path}, row {row}: column {field!r} is null; leave such rows out of the file")
                try:
                    yield value.decode("utf-8", errors)
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, row {row}: not UTF-8; mend it, or read on with --errors replace"
                    ) from error


def _no_field(where: str, field: str, known: Iterable[str], what: str) -> UserError:
    names = list(known)
    listed = ", ".join(map(repr, names[:8])) + (" ..." if len(names) > 8 else "")
    hint = nearest(field, names) or "; name the right one with --corpus.text_field"
    return UserError(f"{where}: no field {field!r} in this {what} ({listed or 'it is empty'}){hint}")


def _not_utf8(where: str, offset: int) -> UserError:
    return UserError(f"{where}: not UTF-8 at byte {offset}; convert the file, or read on with --errors replace")


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions, or leave it out")
