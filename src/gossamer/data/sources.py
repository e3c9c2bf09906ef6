"""Which files the configured paths stand for.

Folders are walked in the order of their names. What is skipped there is counted by kind: hidden files and folders,
empty files, files whose suffix says that they are binary, folders of installed packages and caches, and the
descriptions of a data set. A file that was named itself is never skipped: if it cannot be read as text, that is an
error.

A Hugging Face Hub dataset becomes a local JSONL file. It is streamed once, a record at a time, into the cache, and is a
file like any other from then on: the passes over it read the disk, and a later start needs no network. Delete its
folder to fetch it again.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.cache import cached_folder, json_digest
from gossamer.data.config import CorpusConfig
from gossamer.data.progress import ProgressDisplay
from gossamer.data.text_files import content_suffix
from gossamer.errors import UserError, did_you_mean, did_you_mean_path, shorten
from gossamer.reading import read_json, user_path

__all__ = ["HUB_PREFIX", "SkippedFiles", "fetch_hub_dataset", "find_files", "standard_library"]

HUB_PREFIX = "hf:"
"""What the name of a Hub dataset begins with where a path may stand."""

_HUB_FILE = "records.jsonl"

_BINARY_SUFFIXES = frozenset(
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
"""Suffixes of files that are skipped inside folders without being opened."""

# Folders of the standard library that are no programs to learn from: tests, installed packages, generated tables.
_STDLIB_SKIPPED = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__")
)
_PACKAGE_FOLDERS = frozenset(
    ("node_modules", "bower_components", "jspm_packages", "site-packages", "dist-packages", "__pycache__")
)
_MARKER_FILES = ("pyvenv.cfg", "CACHEDIR.TAG")  # in a folder that a program fills: a virtual environment, a cache
# What `save_to_disk` of the datasets library writes beside the records, and the list of a data set's splits.
_DATASET_FILES, _DATASET_SPLITS = frozenset({"dataset_info.json", "state.json"}), "dataset_dict.json"


class SkippedFiles:
    """What a walk through folders skipped, by kind.

    Attributes:
        kinds: for each kind, how many there were and the name of the first
    """

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Count one more file or folder of a kind."""
        count, first = self.kinds.get(kind, (0, name))
        self.kinds[kind] = count + 1, first

    def describe(self) -> str:
        """Return a list of the kinds in one line, empty if nothing was skipped."""
        parts = [
            f"{count:,} {kind} ({first}{', …' if count > 1 else ''})" for kind, (count, first) in self.kinds.items()
        ]
        return ", ".join(parts)


class _DataFile(TypedDict):
    """One file of a saved data set."""

    filename: str


class _DatasetState(TypedDict):
    """What `state.json` of a saved data set says about its files."""

    _data_files: list[_DataFile]


def find_files(
    given: str, config: CorpusConfig, progress: ProgressDisplay, skipped: SkippedFiles | None = None
) -> Iterator[tuple[Path, bool]]:
    """Yield the files that a path stands for, each with whether it was named itself (True) or found in a folder.

    Args:
        given: a file, a folder or `hf:NAME[[:CONFIG]:SPLIT]`
        config: names the text field, and the cache folder that Hub datasets are fetched into
        progress: shows how far the fetching of a Hub dataset has come
        skipped: counts what else the folder holds

    Raises:
        UserError: there is nothing at the path, or no text.
    """
    if given.startswith(HUB_PREFIX):
        yield fetch_hub_dataset(given, config.text_field, config.cache_folder(), progress), True
        return
    path = user_path(given)
    try:
        if path.is_dir():
            skipped = SkippedFiles() if skipped is None else skipped
            files = list(_walk(path, skipped))
            if not files:
                beside = f" (it holds {skipped.describe()})" if skipped.kinds else ""
                raise UserError(
                    f"{given}: no text in this folder; name one with text, code, JSONL or Parquet files{beside}"
                )
            yield from ((file, False) for file in files)
        elif path.is_file():
            if path.stat().st_size == 0:
                raise UserError(f"{given}: the file is empty; name one with text in it")
            yield path.resolve(), True
        elif path.exists():
            raise UserError(f"{given}: neither a file nor a folder; write its text to a file first")
        else:
            raise UserError(f"{given}: no such file or folder{_nearest_path(path)}")
    except OSError as error:
        raise UserError(f"{given}: cannot be read ({error.strerror}); check the path and its permissions") from error


def standard_library() -> Iterator[tuple[Path, bool]]:
    """Yield the source files of the running Python's standard library, without tests, tables and installed packages."""
    for base, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(name for name in folders if name not in _STDLIB_SKIPPED)
        yield from ((Path(base, name), False) for name in sorted(names) if name.endswith(".py"))


def _nearest_path(path: Path) -> str:
    try:
        names = os.listdir(path.parent)
    except OSError:
        return f"; there is no folder {str(path.parent)!r} either"
    return did_you_mean_path(path.name, names) or "; check the path"


def _walk(folder: Path, skipped: SkippedFiles) -> Iterator[Path]:
    """Yield the files in and below a folder that may hold text or records, in the order of their names."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error

    top = folder.resolve()
    for base, folders, names in os.walk(top, onerror=refuse):
        here = Path(base)
        folders[:] = list(_folders_to_enter(here, folders, names, skipped))
        records = _record_files(here, names)
        for name in sorted(names):
            path = here / name
            if kind := _reason_to_skip(path, records):
                skipped.add(kind, str(path.relative_to(top)))
            else:
                yield path.resolve() if path.is_symlink() else path


def _folders_to_enter(base: Path, folders: list[str], names: list[str], skipped: SkippedFiles) -> Iterator[str]:
    """Yield the subfolders that are walked; of a data set that was saved with splits only the one to train on."""
    train_only = _DATASET_SPLITS in names and "train" in folders
    for name in sorted(folders):
        kind = ""
        if name.startswith("."):
            kind = "hidden"
        elif (base / name).is_symlink():
            kind = "links to folders"
        elif name in _PACKAGE_FOLDERS or any((base / name / mark).is_file() for mark in _MARKER_FILES):
            kind = "folders of packages or caches"
        elif train_only and name != "train":
            kind = "splits of a data set other than train"
        if kind:
            skipped.add(kind, f"{name}/")
        else:
            yield name


def _record_files(base: Path, names: list[str]) -> frozenset[str] | None:
    """The files that hold the records of a data set that `save_to_disk` wrote; None if the folder holds no such set."""
    if not set(names) >= _DATASET_FILES:
        return None
    state = read_json(base / "state.json", _DatasetState, "save the data set again")
    return frozenset(file["filename"] for file in state["_data_files"])


def _reason_to_skip(path: Path, records: frozenset[str] | None) -> str:
    """The kind under which a file in a folder is skipped; empty if it is read.

    Args:
        path: the file
        records: the names of the files with records, in the folder of a saved data set
    """
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "broken links" if path.is_symlink() else "pipes, sockets or devices"
    if not path.stat().st_size:
        return "empty"
    if content_suffix(path) in _BINARY_SUFFIXES:
        return f"{content_suffix(path)}"
    if path.name == _DATASET_SPLITS or (records is not None and path.name in _DATASET_FILES):
        return "descriptions of a data set"
    if records is not None and content_suffix(path) == ".arrow" and path.name not in records:
        return "left-over .arrow"
    return ""


def fetch_hub_dataset(spec: str, text_field: str | None, cache: Path, progress: ProgressDisplay) -> Path:
    """Return the JSONL file of `hf:NAME[[:CONFIG]:SPLIT]` (split "train" by default), and fetch it on the first call.

    Args:
        spec: the data set
        text_field: the only field that is kept, which holds text; None keeps whole records
        cache: the folder that data sets are fetched into
        progress: shows how far it has come

    Raises:
        UserError: the datasets library is not installed, or the dataset cannot be loaded or has no text in
            `text_field`.
    """
    name, *rest = spec.removeprefix(HUB_PREFIX).split(":")
    if not name or len(rest) > 2:
        raise UserError(f"{spec}: not a Hub dataset; write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    split = rest[-1] if rest else "train"
    config = rest[0] if len(rest) == 2 else None
    key = f"{re.sub('[^A-Za-z0-9]+', '-', name).strip('-')}-{json_digest(name, config, split, text_field)[:16]}"

    def build(folder: Path) -> None:
        try:
            datasets = importlib.import_module("datasets")
        except ImportError as error:
            raise UserError(
                f"{spec}: Hub datasets need the datasets library; install it with: pip install 'gossamer[hub]'"
            ) from error
        with (
            progress.stage(f"fetching {spec}", None) as advance,
            open(folder / _HUB_FILE, "w", encoding="utf-8") as file,
        ):
            for record in _hub_records(datasets, spec, name, config, split, text_field):
                line = json.dumps(record)
                file.write(line + "\n")
                advance(len(line))

    return cached_folder(cache / "hub" / key, lambda folder: (folder / _HUB_FILE).is_file(), build) / _HUB_FILE


def _hub_records(
    datasets: Any, spec: str, name: str, config: str | None, split: str, field: str | None
) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        for record in datasets.load_dataset(name, config, split=split, streaming=True):
            number += 1
            if field is None:
                yield {key: value for key, value in record.items() if _is_json(value)}
                continue
            if field not in record:
                hint = did_you_mean(field, record) or "; name the right one with --corpus.text_field"
                raise UserError(f"{spec}: no field {field!r} in this dataset ({', '.join(map(repr, record))}){hint}")
            if not isinstance(record[field], str):
                raise UserError(
                    f"{spec}, record {number}: field {field!r} is not a string; name another --corpus.text_field"
                )
            yield {field: record[field]}
    except UserError:
        raise
    except Exception as error:  # the library, its servers and its file formats raise some thirty unrelated classes
        reason = shorten(error, 200) or type(error).__name__
        raise UserError(f"{spec}: cannot be loaded ({reason}); check its name, its split and the network") from error
    if number == 0:
        raise UserError(f"{spec}: holds no records; name another split")


def _is_json(value: Any) -> bool:
    """Whether a value of a record can be written as JSON, which pictures, sounds and dates cannot."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
