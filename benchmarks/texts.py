"""The texts that networks are raced on: those that every machine has, and named ones for whoever fetched them.

Every Python brings its standard library. A fixed list of its modules, in a fixed order, is the text of a machine
without a network. It differs between versions of Python, so a text's fingerprint is recorded with every figure, and
figures of different texts are never compared. Named texts, which `fetch_texts.py` fetches, lie in texts/ or in the
folder that --texts names.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gossamer.data.config import CorpusConfig
from gossamer.data.sources import standard_library

ROOT = Path(__file__).parents[1]
FETCHED = ROOT / "texts"
SHAKESPEARE, NOVELS = "tinyshakespeare.txt", "novels"

# About as long as tinyshakespeare together; modules of every Python that gossamer runs on.
MODULES = (
    "argparse", "ast", "calendar", "cmd", "codecs", "collections/__init__", "configparser", "contextlib", "copy", "csv",
    "dataclasses", "difflib", "enum", "functools", "gettext", "heapq", "logging/__init__", "optparse", "pprint",
    "random", "shutil", "statistics", "subprocess", "textwrap", "urllib/parse", "weakref",
)  # fmt: skip


@dataclass(frozen=True)
class RaceText:
    """A text as a race reads it.

    Attributes:
        name: what people call it
        paths: its files and folders; empty means all of the standard library's source
        sha256: fingerprint of the files' content in their order
        size: bytes
    """

    name: str
    paths: tuple[Path, ...]
    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{self.name} ({self.size:,} bytes, sha256 {self.sha256[:16]}…)"

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> RaceText:
        """Return the text that a record names, wherever it lies now."""
        return cls(record["name"], (), record["sha256"], record["bytes"])

    def record(self) -> dict[str, Any]:
        """Return what a record says of it."""
        return {"name": self.name, "sha256": self.sha256, "bytes": self.size}


def add_option(parser: ArgumentParser) -> None:
    """Add the option that names the folder of named texts."""
    help = f"folder with {SHAKESPEARE} and {NOVELS}/ (default: texts/ if fetched, else Python's standard library)"
    parser.add_argument("--texts", type=Path, help=help)


def find_text(name: str, folder: Path | None) -> RaceText | None:
    """Return a named file or folder of texts; None if it is missing and no folder was asked for.

    Raises:
        FileNotFoundError: it is not in the folder that was asked for.
    """
    path = (folder or FETCHED) / name
    if path.exists():
        return text_of(name, path)
    if folder is not None:
        raise FileNotFoundError(f"there is no {path}; python benchmarks/fetch_texts.py --out {folder} fetches it")
    return None


def text_of(name: str, *paths: Path) -> RaceText:
    """Return files, and all .txt files of folders, as the text of a race."""
    digest, size = hashlib.sha256(), 0
    for path in paths:
        for file in sorted(path.rglob("*.txt")) if path.is_dir() else [path]:
            content = file.read_bytes()
            digest.update(content)
            size += len(content)
    return RaceText(name, paths, digest.hexdigest(), size)


def whole_standard_library() -> RaceText:
    """Return the corpus of whoever names none: all programs of the standard library."""
    version = sysconfig.get_python_version()
    found = text_of(f"all of Python {version}'s standard library", *(path for path, _ in standard_library()))
    return replace(found, paths=())


def standard_library_text() -> RaceText:
    """Return the text that every machine has: the modules above in one file in the cache, in ASCII alone."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    files = [stdlib / f"{module}.py" for module in MODULES]
    content = b"".join(file.read_bytes() for file in files if file.is_file())
    content = content.replace(b"\r\n", b"\n").decode("ascii", errors="ignore").encode()
    digest = hashlib.sha256(content).hexdigest()
    path = CorpusConfig().cache_folder() / "texts" / f"standard-library-{digest[:16]}.txt"
    if not path.is_file() or path.stat().st_size != len(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(content)
        part.replace(path)
    version = sysconfig.get_python_version()
    return RaceText(f"modules of Python {version}'s standard library", (path,), digest, len(content))
