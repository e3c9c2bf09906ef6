"""A Hugging Face Hub dataset as a local JSONL file.

The dataset is streamed once, a record at a time, into the cache; from then on it is a file like any other, so the
passes that fingerprint, train a tokenizer and tokenise read the disk and a later start needs no network. Delete its
folder to fetch anew.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gossamer.cache import cached_folder, key_of
from gossamer.data.progress import Progress
from gossamer.errors import UserError, nearest

__all__ = ["PREFIX", "fetch"]

PREFIX = "hf:"
_FILE = "records.jsonl"


def fetch(spec: str, text_field: str, cache: Path, progress: Progress) -> Path:
    """Return the JSONL file of ``hf:NAME[[:CONFIG]:SPLIT]`` (split "train" by default), fetching it on the first call.

    Raises:
        UserError: ``datasets`` is not installed, the dataset cannot be loaded, or it has no text in ``text_field``.
    """
    name, *rest = spec.removeprefix(PREFIX).split(":")
    if not name or len(rest) > 2:
        raise UserError(f"{spec}: not a Hub dataset; write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    split = rest[-1] if rest else "train"
    config = rest[0] if len(rest) == 2 else None
    key = f"{re.sub('[^A-Za-z0-9]+', '-', name).strip('-')}-{key_of(name, config, split, text_field)[:16]}"

    def build(folder: Path) -> None:
        try:
            datasets = importlib.import_module("datasets")
        except ImportError as error:
            raise UserError(
                f"{spec}: Hub datasets need the datasets library; install it with: pip install 'gossamer[hub]'"
            ) from error
        with progress.stage(f"fetching {spec}", None) as advance, open(folder / _FILE, "w", encoding="utf-8") as file:
            for text in _texts(datasets, spec, name, config, split, text_field):
                file.write(json.dumps({text_field: text}) + "\n")
                advance(len(text))

    return cached_folder(cache / "hub" / key, lambda folder: (folder / _FILE).is_file(), build) / _FILE


def _texts(datasets: Any, spec: str, name: str, config: str | None, split: str, field: str) -> Iterator[str]:
    number = 0
    try:
        for record in datasets.load_dataset(name, config, split=split, streaming=True):
            number += 1
            if field not in record:
                hint = nearest(field, record) or "; name the right one with --corpus.text_field"
                raise UserError(f"{spec}: no field {field!r} in this dataset ({', '.join(map(repr, record))}){hint}")
            if not isinstance(record[field], str):
                raise UserError(
                    f"{spec}, record {number}: field {field!r} is not a string; name another --corpus.text_field"
                )
            yield record[field]
    except UserError:
        raise
    except Exception as error:  # the library, its servers and its file formats raise some thirty unrelated classes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{spec}: cannot be loaded ({reason}); check its name, its split and the network") from error
    if number == 0:
        raise UserError(f"{spec}: holds no records; name another split")
