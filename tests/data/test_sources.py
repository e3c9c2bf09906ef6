"""Which files a path stands for."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gossamer.data.config import CorpusConfig
from gossamer.data.progress import ProgressDisplay
from gossamer.data.sources import fetch_hub_dataset, find_files, standard_library
from gossamer.errors import UserError


def find(path: Path | str) -> list[tuple[str, bool]]:
    found = find_files(str(path), CorpusConfig(), ProgressDisplay(False))
    return [(os.path.relpath(file, path), named) for file, named in found]


def test_folders_are_walked_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.py", "a/y.jsonl", "a.txt", ".git/config", ".hidden", "pic.PNG", "w.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert find(tmp_path) == [("a.txt", False), ("b.txt", False), ("a/y.jsonl", False), ("a/z.py", False)]


def test_links_stand_for_their_targets(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.txt").write_text("text")
    (tmp_path / "folder" / "here.txt").symlink_to(tmp_path / "there.txt")
    assert find(tmp_path / "folder") == [("../there.txt", False)]


def test_a_named_file_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / ".hidden.png").write_text("text")
    assert find(tmp_path / ".hidden.png") == [(".", True)]


def test_a_missing_path_gets_a_hint(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    with pytest.raises(UserError, match=r"no such file or folder; did you mean 'corpus.txt'\?"):
        find(tmp_path / "copus.txt")
    with pytest.raises(UserError, match="no such file or folder; check the path"):
        find(tmp_path / "quite-different")
    with pytest.raises(UserError, match="there is no folder"):
        find(tmp_path / "no" / "corpus.txt")


def test_an_empty_folder_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text in this folder"):
        find(tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="the file is empty"):
        find(tmp_path / "empty.txt")


def test_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        find(tmp_path / "pipe")


def test_text_given_for_a_path() -> None:
    with pytest.raises(UserError, match=r"cannot be read .File name too long."):
        find("once upon a time " * 100)


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"inner: cannot be read \(Permission denied\)"):
        find(tmp_path)


def test_the_standard_library_is_its_programs() -> None:
    files = [file for file, _ in standard_library()]
    names = {file.name for file in files}
    assert {"argparse.py", "dataclasses.py"} <= names and all(file.suffix == ".py" for file in files)
    parts = {part for file in files for part in file.relative_to(os.path.dirname(os.__file__)).parts}
    assert not parts & {"site-packages", "test", "tests", "idle_test", "__pycache__"}
    assert 2e6 < sum(file.stat().st_size for file in files) < 2e7
    assert files == [file for file, _ in standard_library()]


# Hub datasets, with a stand-in for the library that would fetch them.

calls: list[tuple[Any, ...]] = []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Records that the stand-in yields; an exception among them is raised."""
    records: list[Any] = []
    calls.clear()

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Iterable[Any]:
        calls.append((name, config, split, streaming))
        for record in records:
            if isinstance(record, Exception):
                raise record
            yield record

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return records


def fetch(spec: str, cache: Path, field: str = "text") -> Path:
    return fetch_hub_dataset(spec, field, cache, ProgressDisplay(False))


@pytest.mark.parametrize(
    ("spec", "call"),
    [
        ("hf:org/name", ("org/name", None, "train", True)),
        ("hf:org/name:test", ("org/name", None, "test", True)),
        ("hf:org/name:en:train", ("org/name", "en", "train", True)),
    ],
)
def test_fetched_once_streaming(hub: list[Any], tmp_path: Path, spec: str, call: tuple[Any, ...]) -> None:
    hub += [{"text": "one\nline", "id": 1}, {"text": "😀"}]
    path = fetch(spec, tmp_path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"text": "one\nline"}, {"text": "😀"}]
    assert path.suffix == ".jsonl" and "org-name" in path.parent.name
    assert fetch(spec, tmp_path) == path and calls == [call]
    assert {one.name for one in path.parent.iterdir()} <= {path.name, "seal.json", "checked.json"}


def test_specs_have_files_of_their_own(hub: list[Any], tmp_path: Path) -> None:
    hub.append({"text": "a", "body": "b"})
    assert len({fetch("hf:x", tmp_path), fetch("hf:x:test", tmp_path), fetch("hf:x", tmp_path, "body")}) == 3


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "holds no records"),
        ([{"txt": "a"}], r"no field 'text' in this dataset \('txt'\); did you mean 'txt'\?"),
        ([{"text": "a"}, {"text": 1}], "record 2: field 'text' is not a string"),
        ([{"text": "a"}, ConnectionError("no\nroute")], r"cannot be loaded \(no route\)"),
    ],
)
def test_failures_leave_nothing_behind(hub: list[Any], tmp_path: Path, records: list[Any], message: str) -> None:
    hub += records
    with pytest.raises(UserError, match=message):
        fetch("hf:org/name", tmp_path)
    assert not list((tmp_path / "hub").iterdir())


@pytest.mark.parametrize("spec", ["hf:", "hf:a:b:c:d"])
def test_a_malformed_name_of_a_hub_dataset_is_refused(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UserError, match="not a Hub dataset; write hf:NAME"):
        fetch(spec, tmp_path)


def test_a_missing_library_of_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'gossamer\[hub\]'"):
        fetch("hf:org/name", tmp_path)
