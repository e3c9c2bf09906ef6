"""CorpusConfig: impossible values and the place of the cache."""

from pathlib import Path
from typing import Any

import pytest

from gossamer.data.config import CorpusConfig, SetConfig
from gossamer.errors import UserError


def test_errors_must_be_known() -> None:
    with pytest.raises(UserError, match=r"errors = 'strct': expected one of strict, replace; did you mean 'strict'\?"):
        CorpusConfig(errors="strct")


def test_bpe_needs_all_bytes() -> None:
    with pytest.raises(UserError, match="at least 257"):
        CorpusConfig(vocab_size=256)
    assert CorpusConfig(vocab_size=10, tokenizer="char").vocab_size == 10  # means nothing there


A = SetConfig(("a",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers = -1: must be from 0 to 1,024"),
        ({"sets": {"a": A}, "paths": ("b",)}, "paths: the corpus is mixed from sets; name the text in one of them"),
        ({"sets": {"a": A}, "validation_paths": ("b",)}, "validation_paths: the corpus is mixed from sets; name the"),
        ({"sets": {"a": SetConfig()}}, "sets.a: names no paths; give its files and folders"),
        ({"sets": {"novels": A, "novel": SetConfig()}}, "sets.novel: names no paths; did you mean 'novels'?"),
        ({"sets": {"a": {"weight": -1.0}}}, "sets.a.weight = -1.0: must be from 0 to 1e+12"),
        ({"sets": {"a": {"weight": float("inf")}}}, "sets.a.weight = inf: expected a number"),
        ({"sets": {"a": SetConfig(("a",), 0.0)}}, "sets: all weights are 0, and nothing is left to train on; give"),
        ({"sets": {"a.b": A}}, "sets: 'a.b' is not a valid name; use letters, digits, - and _"),
        ({"validation_sets": {"": ("a",)}}, "validation_sets: '' is not a valid name; use letters, digits, - and _"),
        ({"validation_sets": {"a": ()}}, "validation_sets.a: names no paths; give its files and folders"),
        ({"sets": {"a": A}, "validation_sets": {"a": ("b",)}}, "validation_sets.a: there is a validation set of that"),
        ({"validation_sets": {"held-out": ("b",)}}, "validation_sets.held-out: there is a validation set of that name"),
    ],
)
def test_impossible_sets(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        CorpusConfig(**options)
    assert str(caught.value).startswith(message)


def test_possible_sets() -> None:
    sets = {"a": A, "b-2": SetConfig(("b",), 0.0)}
    assert CorpusConfig(sets=sets, validation_sets={"held-out": ("c",)}, workers=3).sets == sets


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
