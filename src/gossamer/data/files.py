"""Which files a path stands for.

Folders are walked in the order of their names; hidden files and folders, empty files and those whose suffix says
binary are passed over there. A file that somebody named is taken at their word: if it cannot be read as text, that is
an error.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from gossamer.data import hub_dataset
from gossamer.data.config import CorpusConfig
from gossamer.data.progress import Progress
from gossamer.data.sources import BINARY_SUFFIXES
from gossamer.errors import UserError, nearest_path

__all__ = ["find_files", "standard_library"]

# Parts of the standard library that are not programs to learn from: tests, other people's packages, generated tables.
_STDLIB_SKIPPED = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__")
)


def find_files(given: str, config: CorpusConfig, progress: Progress) -> Iterator[tuple[Path, bool]]:
    """Yield the files of a path, each with whether it was named itself (True) or met in a folder (False).

    Args:
        given: a file, a folder or ``hf:NAME[[:CONFIG]:SPLIT]``.
        config: for ``text_field`` and the cache folder that Hub datasets are fetched into.
        progress: told about fetching.

    Raises:
        UserError: nothing is there, or no text is.
    """
    if given.startswith(hub_dataset.PREFIX):
        yield hub_dataset.fetch(given, config.text_field, config.cache_folder(), progress), True
        return
    path = Path(given).expanduser()
    try:
        if path.is_dir():
            files = list(_walk(path))
            if not files:
                raise UserError(f"{given}: no text in this folder; name one with text, code, JSONL or Parquet files")
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


def _walk(folder: Path) -> Iterator[Path]:
    """Files in and below a folder in the order of their names, without hidden, empty and evidently binary ones."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error

    for base, folders, names in os.walk(folder.resolve(), onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(base, name)
            if name.startswith(".") or path.suffix.lower() in BINARY_SUFFIXES:
                continue
            if path.is_file() and path.stat().st_size:
                yield path.resolve() if path.is_symlink() else path
