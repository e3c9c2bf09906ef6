"""Sets of text: who is trained on, who is held out, and that no file is both."""

from pathlib import Path
from typing import Any

import pytest

from gossamer.data.config import CorpusConfig, SetConfig
from gossamer.data.progress import Progress
from gossamer.data.sets import TextSet, open_sets
from gossamer.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(f"{name} " * 20)
    return tmp_path


def opened(folder: Path, **options: Any) -> dict[str, TextSet]:
    config = CorpusConfig(cache_dir=str(folder / ".cache"), **options)
    return {one.name: one for one in open_sets(config, Progress(False))}


def letters(one: TextSet, part: str) -> str:
    return "".join(sorted(set("".join(piece.text for piece in one.pieces() if piece.part == part)) - {" "}))


def test_plain_paths(folder: Path) -> None:
    found = opened(folder, paths=(str(folder),), validation_paths=(str(folder / "b.txt"),))
    assert list(found) == ["held-out"] and found["held-out"].parts == ("train", "validation")
    assert (letters(found["held-out"], "train"), letters(found["held-out"], "validation")) == ("acd", "b")
    assert found["held-out"].held == str(folder / "b.txt") and found["held-out"].num_bytes == 4 * 40


def test_held_out_text_is_left_out_of_every_set(folder: Path) -> None:
    sets = {
        "one": SetConfig((str(folder / "a.txt"), str(folder / "b.txt"), str(folder / "c.txt"))),
        "two": SetConfig((str(folder / "d.txt"),), 3.0, (str(folder / "b.txt"),)),
    }
    found = opened(folder, sets=sets, validation_sets={"far": (str(folder / "c.txt"),)})
    assert list(found) == ["one", "two", "far"] and [one.weight for one in found.values()] == [1.0, 3.0, 0.0]
    assert [letters(one, "train") for one in found.values()] == ["a", "d", ""]
    assert [letters(one, "validation") for one in found.values()] == ["a", "b", "c"]
    assert found["far"].parts == ("validation",) and found["far"].corpus is None
    assert len({one.digest for one in found.values()}) == 3


def test_a_file_belongs_to_one_set(folder: Path) -> None:
    sets = {"one": SetConfig((str(folder / "a.txt"),)), "two": SetConfig((str(folder),))}
    with pytest.raises(UserError, match=r"^corpus\.sets\.two: .*a\.txt is in set 'one', too; leave it out"):
        opened(folder, sets=sets)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"sets": {"one": SetConfig(("GONE",))}}, r"corpus\.sets\.one: "),
        ({"sets": {"one": SetConfig(("a.txt",), 1.0, ("GONE",))}}, r"corpus\.sets\.one\.validation_paths: "),
        ({"validation_sets": {"far": ("GONE",)}}, r"corpus\.validation_sets\.far: "),
        ({"paths": ("GONE",)}, ""),
    ],
)
def test_the_set_of_a_bad_path_is_named(folder: Path, options: Any, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=rf"^{key}GONE: no such file or folder"):
        opened(folder, **options)


def test_a_set_without_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    sets = {"one": SetConfig(("a.txt",)), "two": SetConfig(("b.txt",))}
    with pytest.raises(UserError, match=r"^corpus\.sets\.two: b\.txt: holds no text that is not held out"):
        opened(folder, sets=sets, validation_sets={"far": ("b.txt",)})
