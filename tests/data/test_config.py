"""CorpusConfig: impossible values and the place of the cache."""

from pathlib import Path

import pytest

from gossamer.data.config import CorpusConfig
from gossamer.errors import UserError


def test_errors_must_be_known() -> None:
    with pytest.raises(UserError, match=r"'strct' is not 'strict' or 'replace'; did you mean 'strict'\?"):
        CorpusConfig(errors="strct")


def test_bpe_needs_all_bytes() -> None:
    with pytest.raises(UserError, match="at least 257"):
        CorpusConfig(vocab_size=256)
    assert CorpusConfig(vocab_size=10, tokenizer="char").vocab_size == 10  # means nothing there


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GOSSAMER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CorpusConfig().cache_folder() == tmp_path / ".cache" / "gossamer"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert CorpusConfig().cache_folder() == Path("/xdg/gossamer")
    monkeypatch.setenv("GOSSAMER_CACHE", "/own")
    assert CorpusConfig().cache_folder() == Path("/own")
    assert CorpusConfig(cache_dir="~/mine").cache_folder() == tmp_path / "mine"
