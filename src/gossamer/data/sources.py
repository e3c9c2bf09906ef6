"""One file as a stream of documents: text and source code, JSONL, JSON, CSV and TSV, Parquet, Arrow; compressed or not.

A document comes as its pieces: strings of at most ``PIECE`` characters whose concatenation is the document. Whatever a
file's size, no more than about a piece of a text file, a record of a JSONL or CSV file or a batch of rows of a Parquet
or Arrow file is in memory; a ``.json`` file that is one list is read as a whole. Pieces end at line ends where there
are any, and depend on the text alone, so every pass over a file sees the same ones.
"""

from __future__ import annotations

import codecs
import csv
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gossamer.data.streams import Tally, kind_of, open_stream
from gossamer.errors import UserError, nearest
from gossamer.reading import open_to_read, parse_json

__all__ = ["BINARY_SUFFIXES", "PIECE", "NoTextField", "is_binary", "pieces", "read_documents"]

PIECE = 1 << 18
"""Characters of a piece: two threads can share a one-megabyte document, and cuts are too rare to matter."""

_BLOCK = 1 << 20  # bytes read at once
_ROWS = 64  # Parquet rows read at once
_MAX_RECORD = 1 << 28  # bytes of a line of JSONL or CSV
_MAX_LIST = 1 << 30  # bytes of a .json file that is one list

BINARY_SUFFIXES = frozenset(
    f".{name}"
    for names in (
        ("7z", "jar", "lz4", "rar", "tar", "tbz2", "tgz", "txz", "whl", "zip"),
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
_TABLES = (".parquet", ".arrow", ".feather")
RECORDS = frozenset({*_JSONL, *_TABLES, ".json", ".csv", ".tsv"})
"""Suffixes of files that hold records, of which one field is text."""

INCIDENTAL = frozenset({".json", ".csv", ".tsv"})
"""Those of them that also lie beside text as settings or figures."""

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


class NoTextField(UserError):
    """The first record of a file has no field of the name that was asked for."""


def is_binary(path: Path) -> bool:
    """Whether a file that would be read as text cannot be one: a NUL byte among the first 8,192 of its UTF-8."""
    if kind_of(path) in RECORDS:
        return False
    with open_stream(path, "replace", Tally()) as stream:
        return b"\0" in stream.read(8192)


def read_documents(path: Path, text_field: str, errors: str, tally: Tally | None = None) -> Iterator[Iterable[str]]:
    """Yield a file's documents, each as its pieces; documents without a character are left out.

    A text file is one document, whose pieces must be read before the file's next document is asked for; a line of
    JSONL, an item of a JSON list and a row of a table are one document each. A byte order mark is not text and is
    dropped; line ends stay as they are.

    Args:
        path: the file; its name says what it holds, and how it is compressed.
        text_field: the field or column that holds the text.
        errors: "strict" or "replace".
        tally: told of what was replaced.

    Raises:
        UserError: unreadable, not UTF-8 while ``errors`` is "strict", malformed, or without a string in ``text_field``;
            `NoTextField` if that is so of the first record.
    """
    tally = tally or Tally()
    kind = kind_of(path)
    try:
        if kind in _JSONL:
            yield from _records(_jsonl(path, text_field, errors, tally))
        elif kind == ".json":
            yield from _records(_json(path, text_field, errors, tally))
        elif kind in (".csv", ".tsv"):
            yield from _records(_table_of_text(path, text_field, errors, tally))
        elif kind in _TABLES:
            yield from _records(_table(path, text_field, errors, tally))
        else:
            stream = pieces(_decoded(path, errors, tally))
            for first in stream:  # a file without text yields no document
                yield _chain(first, stream)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); check its permissions, or leave it out"
        ) from error


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _records(texts: Iterator[str]) -> Iterator[Iterable[str]]:
    for text in texts:
        if text:
            yield list(pieces([text]))


def _as_text(raw: bytes, errors: str, tally: Tally, final: bool = True) -> tuple[str, int]:
    """UTF-8 as text, and how many of the bytes are in it: all of them if they are ``final``."""
    text, used = codecs.utf_8_decode(raw, errors, final)
    if errors == "replace" and "\ufffd" in text:
        tally.replaced += text.count("\ufffd") - raw[:used].count("\ufffd".encode())
    return text, used


def _decoded(path: Path, errors: str, tally: Tally) -> Iterator[str]:
    """A text file, a block at a time."""
    position, beginning, rest = 0, True, b""
    with open_stream(path, errors, tally) as file:
        while True:
            block = file.read(_BLOCK)
            raw = rest + block
            try:
                text, used = _as_text(raw, errors, tally, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(str(path), position + error.start) from error
            position += used
            rest = raw[used:]  # bytes of a character that the block cut in two
            if beginning and text:
                text, beginning = text.removeprefix("\ufeff"), False
            yield text
            if not block:
                return


def _lines(path: Path, errors: str, tally: Tally) -> Iterator[tuple[int, str]]:
    """Lines of text with their ends, numbered from 1."""
    position = number = 0
    with open_stream(path, errors, tally) as file:
        while raw := file.readline(_MAX_RECORD + 1):
            number += 1
            if len(raw) > _MAX_RECORD:
                raise UserError(f"{path}, line {number}: is longer than {_MAX_RECORD >> 20} MiB; cut it into documents")
            try:
                line, _ = _as_text(raw, errors, tally)
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{path}, line {number}", position + error.start) from error
            position += len(raw)
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def _jsonl(path: Path, field: str, errors: str, tally: Tally) -> Iterator[str]:
    first = True
    for number, line in _lines(path, errors, tally):
        if line.strip():
            where = f"{path}, line {number}"
            record = parse_json(line, where, "a JSONL file holds one whole record a line", strict=False)
            yield _field_of(record, where, field, errors, first)
            first = False


def _json(path: Path, field: str, errors: str, tally: Tally) -> Iterator[str]:
    """A `.json` file: a list of records or of texts, records line by line as in JSONL, or one record."""
    first = next((line for _, line in _lines(path, errors, Tally()) if line.strip()), "")
    if first.lstrip().startswith("{"):
        try:
            parse_json(first, str(path), strict=False)
        except UserError:
            pass  # the first line of one record that is spread over several
        else:
            yield from _jsonl(path, field, errors, tally)
            return
    parts, size = [], 0
    for text in _decoded(path, errors, tally):
        size += len(text)
        if size > _MAX_LIST:
            raise UserError(f"{path}: is a list of more than {_MAX_LIST >> 30} GiB; write it as JSONL, a line a record")
        parts.append(text)
    whole = "".join(parts)
    if not whole.strip():
        return
    value = parse_json(whole, str(path), "mend it, or name it .txt to read it as text", strict=False)
    if not isinstance(value, list):
        yield _field_of(value, str(path), field, errors, True)
        return
    for number, record in enumerate(value, 1):
        where = f"{path}, item {number}"
        yield (
            _mended(record, where, field, errors)
            if isinstance(record, str)
            else _field_of(record, where, field, errors, number == 1)
        )


def _field_of(record: Any, where: str, field: str, errors: str, first: bool) -> str:
    if not isinstance(record, dict):
        error = NoTextField if first else UserError
        raise error(f"{where}: the record is not an object; write it as {{{json.dumps(field)}: ...}}")
    if field not in record:
        raise _no_field(where, field, record, "record", first)
    text = record[field]
    if not isinstance(text, str):
        raise UserError(
            f"{where}: field {field!r} holds {type(text).__name__}, not text; mend it or name another "
            "--corpus.text_field"
        )
    return _mended(text, where, field, errors)


def _mended(text: str, where: str, field: str, errors: str) -> str:
    """JSON can spell half a character, UTF-8 cannot."""
    if not text.isascii() and _SURROGATE.search(text):
        if errors == "strict":
            raise UserError(
                f"{where}: field {field!r} holds half of a surrogate pair, which is no character; mend it, or read on "
                "with --errors replace"
            )
        text = _SURROGATE.sub("\ufffd", text)
    return text


def _table_of_text(path: Path, field: str, errors: str, tally: Tally) -> Iterator[str]:
    """The column of a CSV or TSV file, whose first line names the columns."""
    csv.field_size_limit(_MAX_RECORD)
    lines = (line for _, line in _lines(path, errors, tally))
    header = next((line for line in lines if line.strip()), None)
    if header is None:
        return
    marks = "\t,;|" if kind_of(path) == ".tsv" else ",;\t|"
    names: list[str] = []
    rows: Any = None
    try:
        for mark in marks:  # a comma, unless another one makes a column of that name
            found = [name.strip() for name in next(csv.reader([header], delimiter=mark), [])]
            if field in found or not names:
                names, rows = found, csv.reader(lines, delimiter=mark)
            if field in found:
                break
        if names.count(field) != 1:
            if field in names:
                raise UserError(f"{path}: column {field!r} stands there {names.count(field)} times; name each once")
            raise _no_field(str(path), field, names, "header", True)
        column = names.index(field)
        for row in rows:
            if len(row) == len(names):
                yield row[column]
            elif row:
                raise UserError(
                    f"{path}, line {rows.line_num + 1}: has {len(row)} columns, the header has {len(names)}; put texts "
                    "with separators in quotes"
                )
    except csv.Error as error:
        raise UserError(f"{path}: not {kind_of(path)[1:].upper()} ({error}); write it anew, or as JSONL") from error


def _table(path: Path, field: str, errors: str, tally: Tally) -> Iterator[str]:
    """The column of a Parquet or Arrow file."""
    name = "Parquet" if kind_of(path) == ".parquet" else "Arrow"
    try:
        arrow = importlib.import_module("pyarrow")
        parquet, ipc = importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow.ipc")
    except ImportError as error:
        raise UserError(f"{path}: {name} needs pyarrow; install it with: pip install 'gossamer[parquet]'") from error
    with open_to_read(path, "check its permissions, or leave it out") as file:
        try:
            if name == "Parquet":
                reader: Any = parquet.ParquetFile(file)
                names = reader.schema_arrow.names
                batches = reader.iter_batches(batch_size=_ROWS, columns=[field] if field in names else [])
            elif file.peek(6)[:6] == b"ARROW1":
                reader = ipc.open_file(file)
                names = reader.schema.names
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                reader = ipc.open_stream(file)
                names, batches = reader.schema.names, iter(reader)
            if field not in names:
                raise _no_field(str(path), field, names, "file", True)
            yield from _column(path, field, batches, arrow, errors, tally)
        except (arrow.ArrowException, OSError, EOFError, OverflowError) as error:
            raise UserError(f"{path}: no whole {name} file; write it anew or leave it out") from error


def _column(path: Path, field: str, batches: Iterable[Any], arrow: Any, errors: str, tally: Tally) -> Iterator[str]:
    row = 0
    for batch in batches:
        column = batch.column(batch.schema.names.index(field))
        sound = _sound(column, arrow)
        try:
            values = sound.cast(arrow.large_binary())
        except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
            raise UserError(
                f"{path}: column {field!r} holds {column.type}, not text; name another --corpus.text_field"
            ) from error
        for scalar in values:
            row += 1
            value = scalar.as_py()
            if value is None:
                raise UserError(f"{path}, row {row}: column {field!r} is null; leave such rows out of the file")
            try:
                yield _as_text(value, errors, tally)[0]
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, row {row}: not UTF-8; mend it, or read on with --errors replace") from error


def _sound(column: Any, arrow: Any) -> Any:
    """A column whose texts lie inside of the file; Arrow would follow its offsets anywhere. Text comes as bytes."""
    as_bytes = {arrow.string(): arrow.binary(), arrow.large_string(): arrow.large_binary()}
    plain = column.view(as_bytes[column.type]) if column.type in as_bytes else column
    plain.validate(full=True)
    return plain


def _no_field(where: str, field: str, known: Iterable[str] | Mapping[str, Any], what: str, first: bool) -> UserError:
    names = list(known)
    listed = ", ".join(repr(name[:40]) for name in names[:8]) + (" ..." if len(names) > 8 else "")
    hint = nearest(field, names) or "; name the right one with --corpus.text_field"
    error = NoTextField if first else UserError
    return error(f"{where}: no field {field!r} in this {what} ({listed or 'it is empty'}){hint}")


def _not_utf8(where: str, offset: int) -> UserError:
    return UserError(f"{where}: not UTF-8 at byte {offset}; convert the file, or read on with --errors replace")
