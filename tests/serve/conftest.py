"""A service around the engine's double that all tests of a session share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import engine_double
from live_service import Live, live


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_double.write_tokenizer(tmp_path_factory.mktemp("json"))


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Live]:
    with live(folder) as service:
        yield service
