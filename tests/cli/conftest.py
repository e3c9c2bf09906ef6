"""An empty folder to stand in, a run to name, and training that only notes what it would train."""

from pathlib import Path

import pytest

from stand_in import Calls, replace


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    return "runs/mine"


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return replace(monkeypatch, "gossamer.run.loop", "train")
