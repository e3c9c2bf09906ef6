"""The lines of files with conversations: JSONL, a JSON array, Parquet and Arrow, from files, folders, the Hub or `-`.

A file may be written while it is read, as one that collects ratings is: its last line counts once it is whole.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gossamer.data.config import CorpusConfig
from gossamer.data.documents import JSON_LINES, MAX_JSON_LIST, TABLES, open_table
from gossamer.data.progress import ProgressDisplay
from gossamer.data.sources import HUB_PREFIX, fetch_hub_dataset, find_files
from gossamer.data.text_files import DecodeStats, content_suffix, decode_utf8, text_lines
from gossamer.errors import UserError
from gossamer.files import cache_folder
from gossamer.reading import parse_json
from gossamer.units import size

__all__ = ["STANDARD_INPUT", "Line", "read_lines"]

STANDARD_INPUT = "-"
"""What stands for standard input where a path may stand."""

Line = tuple[str, dict[str, Any]]
"""A line of a file: its place, for messages, and its keys."""

_WHOLE = "write one whole JSON object a line"


def read_lines(paths: Sequence[str], notices: list[str], cache: Path | None = None) -> Iterator[Line]:
    """Yield the lines of all files that the paths stand for; keys whose value is null are left out.

    Args:
        paths: files, folders, `hf:NAME[[:CONFIG]:SPLIT]` for a data set of the Hub, or `-` for standard input
        notices: is extended by what people should know about the files
        cache: the folder that data sets of the Hub are fetched into; None: the usual one

    Raises:
        UserError: a path cannot be read, or a line is no JSON object.
    """
    for given in paths:
        if given == STANDARD_INPUT:
            stats = DecodeStats()
            yield from _json_lines(given, _standard_input(stats), stats, notices, is_json=False)
            continue
        for path in _files(given, notices, cache):
            try:
                yield from _lines_of(path, notices)
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its disk") from error


def _files(given: str, notices: list[str], cache: Path | None) -> Iterator[Path]:
    """Yield the files of a path; in a folder those whose suffix says that they hold records."""
    progress = ProgressDisplay(sys.stderr.isatty())
    if given.startswith(HUB_PREFIX):
        yield fetch_hub_dataset(given, None, cache or cache_folder(), progress)
        return
    others = count = 0
    for path, is_named in find_files(given, CorpusConfig(), progress):
        if is_named or content_suffix(path) in (*JSON_LINES, ".json", *TABLES):
            count += 1
            yield path
        else:
            others += 1
    if not count:
        raise UserError(f"{given}: no JSONL, JSON or Parquet file in this folder; name one with conversations")
    if others:
        notices.append(f"{given}: left out {others:,} files that are neither JSONL nor JSON nor Parquet")


def _lines_of(path: Path, notices: list[str]) -> Iterator[Line]:
    suffix = content_suffix(path)
    if suffix in TABLES:
        return _table_lines(path)
    if suffix in (".csv", ".tsv"):
        raise UserError(f"{path}: tables of text hold no conversations; write it as JSONL, an object a line")
    stats = DecodeStats()
    return _json_lines(str(path), text_lines(path, "replace", stats), stats, notices, is_json=suffix == ".json")


def _standard_input(stats: DecodeStats) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(sys.stdin.buffer, 1):
        line, _ = decode_utf8(raw, "replace", stats)
        yield number, line.removeprefix("\ufeff") if number == 1 else line


def _json_lines(
    name: str, lines: Iterator[tuple[int, str]], stats: DecodeStats, notices: list[str], is_json: bool
) -> Iterator[Line]:
    """Yield the lines of JSONL, the items of an array, or the only object of a file that `is_json` says is JSON."""
    filled = ((number, line) for number, line in lines if line.strip())
    number, line = next(filled, (1, ""))
    if not line:
        raise UserError(f"{name}: the file is empty; name one with conversations")
    if line.lstrip().startswith("[") or (is_json and not _is_json(line)):
        yield from _array_items(name, [line, *_bounded(name, (line for _, line in lines))], stats)
        return
    yield f"{name}:{number}", _object(line, f"{name}:{number}", stats.replaced > 0)
    for number, line in filled:
        where, replaced = f"{name}:{number}", stats.replaced
        try:
            values = _object(line, where, stats.replaced > replaced)
        except UserError:
            if line.endswith("\n"):
                raise
            notices.append(f"{where}: the last line is not finished; {name} was read up to the line before it")
            return
        yield where, values


def _is_json(line: str) -> bool:
    try:
        parse_json(line, "")
    except UserError:
        return False
    return True


def _bounded(name: str, lines: Iterator[str]) -> Iterator[str]:
    length = 0
    for line in lines:
        length += len(line)
        if length > MAX_JSON_LIST:
            raise UserError(
                f"{name}: is a list of more than {size(MAX_JSON_LIST)}; write it as JSONL, an object a line"
            )
        yield line


def _array_items(name: str, lines: list[str], stats: DecodeStats) -> Iterator[Line]:
    if stats.replaced:
        raise UserError(f"{name}: not UTF-8; convert the file")
    value = parse_json("".join(lines), name, "save it again")
    items = value if isinstance(value, list) else [value]
    if not items:
        raise UserError(f"{name}: the list is empty; name a file with conversations")
    for number, item in enumerate(items, 1):
        where = f"{name}, item {number}" if items is value else f"{name}:1"
        yield where, _without_nulls(item, where)


def _object(line: str, where: str, is_damaged: bool) -> dict[str, Any]:
    if is_damaged:
        raise UserError(f"{where}: not UTF-8; convert the file")
    return _without_nulls(parse_json(line, where, _WHOLE), where)


def _without_nulls(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: holds no JSON object; {_WHOLE}")
    return {key: item for key, item in value.items() if item is not None}


def _table_lines(path: Path) -> Iterator[Line]:
    row = 0
    with open_table(path) as (_, batches):
        for batch in batches:
            batch.validate(full=True)
            for values in _rows(batch, path):
                row += 1
                yield f"{path}, row {row}", _present(values)


def _rows(batch: Any, path: Path) -> Iterable[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: holds text that is not UTF-8; write it again") from error
    return rows


def _present(value: Any) -> Any:
    """A value without nulls within it: a table has all keys of a column in each of its rows."""
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return list(map(_present, value)) if isinstance(value, list) else value
