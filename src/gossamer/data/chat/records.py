"""From files to records: every line in its normal form, all of one method, with what people should know about them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gossamer.data.chat.forms import Completion, Method, Record, form_of, read_record
from gossamer.data.chat.messages import is_empty
from gossamer.data.chat.record_files import Line, read_lines
from gossamer.errors import UserError

__all__ = ["Completion", "Record", "Records", "read_records"]

_RATING_ID = "rating_id"  # which ratings of one answer share


@dataclass(frozen=True)
class Records:
    """All lines of some files.

    Attributes:
        method: how is learned from them
        records: the lines, in order
        ignored_keys: keys that mean nothing here, each once
        num_equal: lines that say the same as one before them
        notices: what people should know, a line each
    """

    method: Method
    records: tuple[Record, ...]
    ignored_keys: tuple[str, ...]
    num_equal: int
    notices: tuple[str, ...]


def read_records(paths: Sequence[str], *, method: str = "auto", cache: Path | None = None) -> Records:
    """Read files of conversations, pairs, ratings or texts.

    Args:
        paths: files, folders, `hf:NAME[[:CONFIG]:SPLIT]` for a data set of the Hub, or `-` for standard input
        method: sft, dpo or kto; "auto" takes that of the first line
        cache: the folder that data sets of the Hub are fetched into; None: the usual one

    Raises:
        UserError: a file cannot be read, a line has none of the forms, or two lines are of different methods; the
            message names the place and the key.
    """
    notices: list[str] = []
    ignored: dict[str, None] = {}
    records: list[Record] = []
    found: Method | None = None
    first = ""
    for where, values in _newest_ratings(read_lines(paths, notices, cache), notices):
        form = form_of(where, values, method)
        if found is None:
            found, first = form.method, where
        elif form.method != found:
            raise UserError(
                f"{where}: {form}: these keys are data for {form.method}, but {first} is data for {found}; give each "
                "kind to a call of its own"
            )
        records.append(read_record(form, where, values, ignored))
    if found is None:
        raise UserError(f"{', '.join(paths)}: no line to learn from; name a file with conversations")
    if found == "kto":
        records = _telling(records, notices)
    num_equal = _num_equal(records)
    if method == "dpo" and found == "kto":
        records, found = _paired(records, notices), "dpo"
    return Records(found, tuple(records), tuple(ignored), num_equal, tuple(notices))


def _telling(records: list[Record], notices: list[str]) -> list[Record]:
    """Return the ratings of answers that say something, and note what cannot be learned from the rest.

    Raises:
        UserError: there are none.
    """
    telling = [record for record in records if not _is_empty(record.completions[0])]
    if not telling:
        raise UserError(f"{records[0].where}: every rated answer is empty, so there is nothing to learn from")
    if len(telling) < len(records):
        notices.append(f"{len(records) - len(telling):,} ratings of empty answers were left out")
    labels = {record.label for record in telling}
    if len(labels) == 1:
        only, other = ("good", "bad") if True in labels else ("bad", "good")
        notices.append(f"all ratings are {only}: without a {other} answer the model is told one side alone")
    return telling


def _is_empty(completion: Completion) -> bool:
    return not completion.text and all(map(is_empty, completion.messages))


def _newest_ratings(lines: Iterable[Line], notices: list[str]) -> Iterator[Line]:
    """Yield the lines, but of those with one `rating_id` the last alone, and none if that takes the rating back.

    A rating is taken back by a line whose `label` is null.
    """
    found = list(lines)
    last = {repr(values[_RATING_ID]): place for place, (_, values) in enumerate(found) if _RATING_ID in values}
    replaced = 0
    for place, (where, values) in enumerate(found):
        if _RATING_ID in values and (last[repr(values[_RATING_ID])] != place or "label" not in values):
            replaced += 1
        else:
            yield where, values
    if replaced:
        notices.append(f"{replaced:,} lines are ratings that were changed or taken back later")


def _num_equal(records: Iterable[Record]) -> int:
    seen: set[str] = set()
    count = 0
    for record in records:
        count += (key := _content(record)) in seen
        seen.add(key)
    return count


def _content(record: Record) -> str:
    return json.dumps(asdict(replace(record, where="")), sort_keys=True)


def _paired(records: Sequence[Record], notices: list[str]) -> list[Record]:
    """Return every good completion with every bad one of the same prompt, as pairs."""
    rated: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        rated[_content(replace(record, completions=(), label=None))].append(record)
    pairs = []
    num_paired = 0
    for group in rated.values():
        good, bad = ([record for record in group if record.label is label] for label in (True, False))
        made = [
            replace(one, completions=(one.completions[0], other.completions[0]), label=None)
            for one in good
            for other in bad
            if one.completions != other.completions
        ]
        num_paired += len(group) if made else 0
        pairs += made
    if not pairs:
        raise UserError(
            f"{records[0].where}: no prompt has a good and a bad answer, so there are no pairs; leave --method out"
        )
    if num_paired < len(records):
        notices.append(f"{len(records) - num_paired:,} of {len(records):,} ratings are of prompts without a pair")
    return pairs
