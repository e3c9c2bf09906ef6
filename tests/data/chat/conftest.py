"""What the tests of conversations share: a tokenizer with a chat template."""

from __future__ import annotations

from pathlib import Path

import pytest

import engine_double


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_double.write_tokenizer(tmp_path_factory.mktemp("json"))
