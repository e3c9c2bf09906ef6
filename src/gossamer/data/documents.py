"""One file as a sequence of documents: text and source code, JSONL, JSON, CSV and TSV, Parquet and Arrow.

A document comes as chunks: strings of at most `MAX_CHUNK` characters whose concatenation is the document. However large
a file is, only about one chunk of a text file, one record of a JSONL or CSV file, or one batch of rows of a Parquet or
Arrow file is in memory; a `.json` file that is one list is read as a whole. Chunks end at line ends where there are
any. They depend on the text alone, so every pass over a file sees the same ones.
"""

from __future__ import annotations

import csv
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gossamer.data.text_files import DecodeStats, content_suffix, decode_utf8, open_utf8, text_blocks, text_lines
from gossamer.errors import UserError, did_you_mean
from gossamer.reading import open_to_read, parse_json
from gossamer.units import size

__all__ = [
    "JSON_LINES",
    "MAX_CHUNK",
    "MAX_JSON_LIST",
    "SETTINGS_OR_RECORDS",
    "TABLES",
    "NoTextField",
    "is_binary",
    "open_table",
    "read_documents",
    "split_into_chunks",
]

MAX_CHUNK = 1 << 18
"""Characters of a chunk: two threads can share a document of one megabyte, and cuts are too rare to matter."""

_TABLE_ROWS = 64  # rows of a Parquet file that are read at once
_MAX_CSV_FIELD = 1 << 28  # bytes
MAX_JSON_LIST = 1 << 30
"""Characters of a .json file that is one list."""

JSON_LINES = (".jsonl", ".ndjson")
"""Suffixes of files with a record a line."""
TABLES = (".parquet", ".arrow", ".feather")
"""Suffixes of files that pyarrow reads."""
_RECORDS = frozenset({*JSON_LINES, *TABLES, ".json", ".csv", ".tsv"})
"""Suffixes of files that hold records, one field of which is the text."""

SETTINGS_OR_RECORDS = frozenset({".json", ".csv", ".tsv"})
"""Suffixes of files that hold records, or settings and figures that happen to lie beside the text."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def split_into_chunks(blocks: Iterable[str]) -> Iterator[str]:
    """Cut the concatenation of `blocks` into chunks of at most `MAX_CHUNK` characters, at line ends where possible."""
    buffer = ""
    for block in blocks:
        buffer += block
        start = 0
        while len(buffer) - start > MAX_CHUNK:
            end = buffer.rfind("\n", start, start + MAX_CHUNK) + 1 or start + MAX_CHUNK
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield buffer


class NoTextField(UserError):
    """The first record of a file has no field of the configured name.

    Attributes:
        fields: the names of the fields that it has, as the message lists them; empty if it has none
    """

    def __init__(self, message: str, fields: str = "") -> None:
        super().__init__(message)
        self.fields = fields


def is_binary(path: Path) -> bool:
    """Return whether a file that would be read as text is none: a NUL byte is among the first 8,192 of its UTF-8."""
    if content_suffix(path) in _RECORDS:
        return False
    with open_utf8(path, "replace", DecodeStats()) as stream:
        return b"\0" in stream.read(8192)


def read_documents(
    path: Path, text_field: str, errors: str, stats: DecodeStats | None = None
) -> Iterator[Iterable[str]]:
    """Yield the documents of a file, each as its chunks; documents without a character are left out.

    A text file is one document, whose chunks must be read before the next document is asked for. A line of JSONL, an
    item of a JSON list and a row of a table are one document each. A byte order mark is no text and is dropped; line
    ends stay as they are.

    Args:
        path: the file; its name says what it holds and how it is compressed
        text_field: the field or column that holds the text
        errors: "strict" or "replace"
        stats: updated with what had to be replaced

    Raises:
        UserError: the file cannot be read, is not UTF-8 while `errors` is "strict", is malformed, or a record has no
            string in `text_field`.
        NoTextField: the first record has no such field.
    """
    stats = stats or DecodeStats()
    kind = content_suffix(path)
    try:
        if kind in JSON_LINES:
            yield from _chunked(_jsonl_texts(path, text_field, errors, stats))
        elif kind == ".json":
            yield from _chunked(_json_texts(path, text_field, errors, stats))
        elif kind in (".csv", ".tsv"):
            yield from _chunked(_csv_texts(path, text_field, errors, stats))
        elif kind in TABLES:
            yield from _chunked(_table_texts(path, text_field, errors, stats))
        else:
            stream = split_into_chunks(text_blocks(path, errors, stats))
            for first in stream:  # a file without text yields no document
                yield _prepend(first, stream)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); check its permissions, or leave it out"
        ) from error


def _prepend(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _chunked(texts: Iterator[str]) -> Iterator[Iterable[str]]:
    for text in texts:
        if text:
            yield list(split_into_chunks([text]))


def _jsonl_texts(path: Path, field: str, errors: str, stats: DecodeStats) -> Iterator[str]:
    first = True
    for number, line in text_lines(path, errors, stats):
        if line.strip():
            where = f"{path}, line {number}"
            record = parse_json(line, where, "a JSONL file holds one whole record a line", strict=False)
            yield _field_of(record, where, field, errors, first)
            first = False


def _json_texts(path: Path, field: str, errors: str, stats: DecodeStats) -> Iterator[str]:
    """The texts of a `.json` file: a list of records or of texts, records line by line as in JSONL, or one record."""
    first = next((line for _, line in text_lines(path, errors, DecodeStats()) if line.strip()), "")
    if first.lstrip().startswith("{"):
        try:
            parse_json(first, str(path), strict=False)
        except UserError:
            pass  # the first line of one record that is spread over several
        else:
            yield from _jsonl_texts(path, field, errors, stats)
            return
    parts, length = [], 0
    for text in text_blocks(path, errors, stats):
        length += len(text)
        if length > MAX_JSON_LIST:
            raise UserError(f"{path}: is a list of more than {size(MAX_JSON_LIST)}; write it as JSONL, a line a record")
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
            _without_surrogates(record, where, field, errors)
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
    return _without_surrogates(text, where, field, errors)


def _without_surrogates(text: str, where: str, field: str, errors: str) -> str:
    """The text without halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    if not text.isascii() and _SURROGATE.search(text):
        if errors == "strict":
            raise UserError(
                f"{where}: field {field!r} holds half of a surrogate pair, which is no character; mend it, or read on "
                "with --errors replace"
            )
        text = _SURROGATE.sub("\ufffd", text)
    return text


def _csv_texts(path: Path, field: str, errors: str, stats: DecodeStats) -> Iterator[str]:
    """The texts in a column of a CSV or TSV file, whose first line names the columns."""
    csv.field_size_limit(_MAX_CSV_FIELD)
    lines = (line for _, line in text_lines(path, errors, stats))
    header = next((line for line in lines if line.strip()), None)
    if header is None:
        return
    delimiters = "\t,;|" if content_suffix(path) == ".tsv" else ",;\t|"
    names: list[str] = []
    rows: Any = None
    try:
        for delimiter in delimiters:  # the first one, unless another one gives a column of that name
            found = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
            if field in found or not names:
                names, rows = found, csv.reader(lines, delimiter=delimiter)
            if field in found:
                break
        if names.count(field) != 1:
            if field in names:
                raise UserError(
                    f"{path}: column {field!r} occurs {names.count(field)} times; give each column a name of its own"
                )
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
        raise UserError(
            f"{path}: not {content_suffix(path)[1:].upper()} ({error}); write it again, or as JSONL"
        ) from error


def _table_texts(path: Path, field: str, errors: str, stats: DecodeStats) -> Iterator[str]:
    """The texts in a column of a Parquet or Arrow file."""
    with open_table(path, field) as (names, batches):
        if field not in names:
            raise _no_field(str(path), field, names, "file", True)
        yield from _column_texts(path, field, batches, errors, stats)


@contextmanager
def open_table(path: Path, column: str | None = None) -> Iterator[tuple[list[str], Iterator[Any]]]:
    """Open a Parquet or Arrow file: the names of its columns, and its rows in record batches of Arrow.

    Args:
        path: the file
        column: the only column of Parquet that is read; None: all

    Raises:
        UserError: pyarrow is not installed, or the file cannot be read, then or while its rows are read.
    """
    name = "Parquet" if content_suffix(path) == ".parquet" else "Arrow"
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
                columns = names if column is None else [column] if column in names else []
                batches = reader.iter_batches(batch_size=_TABLE_ROWS, columns=columns)
            elif file.peek(6)[:6] == b"ARROW1":
                reader = ipc.open_file(file)
                names = reader.schema.names
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                reader = ipc.open_stream(file)
                names, batches = reader.schema.names, iter(reader)
            yield names, batches
        except (arrow.ArrowException, OSError, EOFError, OverflowError) as error:
            raise UserError(f"{path}: not a complete {name} file; write it again, or leave it out") from error


def _column_texts(path: Path, field: str, batches: Iterable[Any], errors: str, stats: DecodeStats) -> Iterator[str]:
    arrow = importlib.import_module("pyarrow")
    row = 0
    for batch in batches:
        column = batch.column(batch.schema.names.index(field))
        checked = _checked_column(column, arrow)
        try:
            values = checked.cast(arrow.large_binary())
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
                yield decode_utf8(value, errors, stats)[0]
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, row {row}: not UTF-8; mend it, or read on with --errors replace") from error


def _checked_column(column: Any, arrow: Any) -> Any:
    """The column, with text as bytes, once its offsets are known to stay inside the file: Arrow does not check them."""
    as_bytes = {arrow.string(): arrow.binary(), arrow.large_string(): arrow.large_binary()}
    plain = column.view(as_bytes[column.type]) if column.type in as_bytes else column
    plain.validate(full=True)
    return plain


def _no_field(where: str, field: str, known: Iterable[str] | Mapping[str, Any], what: str, first: bool) -> UserError:
    names = list(known)
    listed = ", ".join(repr(name[:40]) for name in names[:8]) + (" ..." if len(names) > 8 else "")
    hint = did_you_mean(field, names) or "; name the right one with --corpus.text_field"
    message = f"{where}: no field {field!r} in this {what} ({listed or 'it is empty'}){hint}"
    return NoTextField(message, listed) if first else UserError(message)
