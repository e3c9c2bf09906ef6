"""Hub datasets, with a stand-in for the library that would fetch them."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gossamer.data import hub_dataset
from gossamer.data.progress import Progress
from gossamer.errors import UserError

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
    return hub_dataset.fetch(spec, field, cache, Progress(False))


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
def test_malformed(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UserError, match="not a Hub dataset; write hf:NAME"):
        fetch(spec, tmp_path)


def test_library_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'gossamer\[hub\]'"):
        fetch("hf:org/name", tmp_path)
