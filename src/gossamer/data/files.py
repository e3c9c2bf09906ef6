"""Which files a path stands for.

Folders are walked in the order of their names. Hidden files and folders, empty files, those whose suffix says binary,
folders of installed packages and caches, and what describes a data set are passed over there, and counted by kind. A
file that somebody named is taken at their word: if it cannot be read as text, that is an error.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer.data import hub_dataset
from gossamer.data.config import CorpusConfig
from gossamer.data.progress import Progress
from gossamer.data.sources import BINARY_SUFFIXES
from gossamer.data.streams import kind_of
from gossamer.errors import UserError, nearest_path
from gossamer.reading import read_json, user_path

__all__ = ["Passed", "find_files", "standard_library"]

# Parts of the standard library that are not programs to learn from: tests, other people's packages, generated tables.
_STDLIB_SKIPPED = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__")
)


_PACKAGES = frozenset(
    ("node_modules", "bower_components", "jspm_packages", "site-packages", "dist-packages", "__pycache__")
)
_MARKS = ("pyvenv.cfg", "CACHEDIR.TAG")  # of a folder that a program fills: a virtual environment, a cache, a build
_DATASET, _SPLITS = frozenset({"dataset_info.json", "state.json"}), "dataset_dict.json"


class Passed:
    """What a walk passed over, by kind.

    Attributes:
        kinds: how many of each kind, and the first of them
    """

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Count one more."""
        count, first = self.kinds.get(kind, (0, name))
        self.kinds[kind] = count + 1, first

    def describe(self) -> str:
        """All of it in one line for people; empty where nothing was passed over."""
        parts = [
            f"{count:,} {kind} ({first}{', …' if count > 1 else ''})" for kind, (count, first) in self.kinds.items()
        ]
        return ", ".join(parts)


class _DataFile(TypedDict):
    filename: str


class _State(TypedDict):
    """What ``state.json`` of a saved data set says of its files."""

    _data_files: list[_DataFile]


def find_files(
    given: str, config: CorpusConfig, progress: Progress, passed: Passed | None = None
) -> Iterator[tuple[Path, bool]]:
    """Yield the files of a path, each with whether it was named itself (True) or met in a folder (False).

    Args:
        given: a file, a folder or ``hf:NAME[[:CONFIG]:SPLIT]``.
        config: for ``text_field`` and the cache folder that Hub datasets are fetched into.
        progress: told about fetching.
        passed: told about what a folder holds beside them.

    Raises:
        UserError: nothing is there, or no text is.
    """
    if given.startswith(hub_dataset.PREFIX):
        yield hub_dataset.fetch(given, config.text_field, config.cache_folder(), progress), True
        return
    path = user_path(given)
    try:
        if path.is_dir():
            passed = Passed() if passed is None else passed
            files = list(_walk(path, passed))
            if not files:
                beside = f" (it holds {passed.describe()})" if passed.kinds else ""
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
    """Yield the files of the running Python's own library: programs, without tests, tables and installed packages."""
    for base, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(name for name in folders if name not in _STDLIB_SKIPPED)
        yield from ((Path(base, name), False) for name in sorted(names) if name.endswith(".py"))


def _nearest_path(path: Path) -> str:
    try:
        names = os.listdir(path.parent)
    except OSError:
        return f"; there is no folder {str(path.parent)!r} either"
    return nearest_path(path.name, names) or "; check the path"


def _walk(folder: Path, passed: Passed) -> Iterator[Path]:
    """The files in and below a folder that may be text or records, in the order of their names."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error

    top = folder.resolve()
    for base, folders, names in os.walk(top, onerror=refuse):
        here = Path(base)
        folders[:] = list(_entered(here, folders, names, passed))
        data = _dataset_files(here, names)
        for name in sorted(names):
            path = here / name
            if kind := _passed_over(path, data):
                passed.add(kind, str(path.relative_to(top)))
            else:
                yield path.resolve() if path.is_symlink() else path


def _entered(base: Path, folders: list[str], names: list[str], passed: Passed) -> Iterator[str]:
    """Which of a folder's folders are walked: of a data set saved with splits the one to train on, if it has one."""
    only = {"train"} if _SPLITS in names and "train" in folders else None
    for name in sorted(folders):
        kind = ""
        if name.startswith("."):
            kind = "hidden"
        elif (base / name).is_symlink():
            kind = "links to folders"
        elif name in _PACKAGES or any((base / name / mark).is_file() for mark in _MARKS):
            kind = "folders of packages or caches"
        elif only is not None and name not in only:
            kind = "splits of a data set that are not its train"
        if kind:
            passed.add(kind, f"{name}/")
        else:
            yield name


def _dataset_files(base: Path, names: list[str]) -> frozenset[str] | None:
    """The files that hold the records of a data set that ``save_to_disk`` wrote; None where there is none."""
    if not set(names) >= _DATASET:
        return None
    state = read_json(base / "state.json", _State, "save the data set anew")
    return frozenset(file["filename"] for file in state["_data_files"])


def _passed_over(path: Path, data: frozenset[str] | None) -> str:
    """Why a file in a folder is not read; empty where it is."""
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "broken links" if path.is_symlink() else "pipes, sockets or devices"
    if not path.stat().st_size:
        return "empty"
    if kind_of(path) in BINARY_SUFFIXES:
        return f"{kind_of(path)}"
    if path.name == _SPLITS or (data is not None and path.name in _DATASET):
        return "descriptions of a data set"
    if data is not None and kind_of(path) == ".arrow" and path.name not in data:
        return "left-over .arrow"
    return ""
