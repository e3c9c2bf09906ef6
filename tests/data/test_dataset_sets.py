"""prepare with several sets: token files of their own, one tokenizer, weights."""

from pathlib import Path
from typing import Any

import pytest

from gossamer.data import dataset as module
from gossamer.data.config import CorpusConfig, SetConfig
from gossamer.data.dataset import Dataset, TextSet, open_sets, prepare
from gossamer.data.progress import ProgressDisplay
from gossamer.data.token_files import TokenFile
from gossamer.data.tokenizer import Tokenizer, train_bpe
from gossamer.errors import UserError


def texts(token_file: TokenFile, tokenizer: Tokenizer) -> list[str]:
    ends = zip(token_file.offsets, token_file.offsets[1:], strict=False)
    return [tokenizer.decode(token_file.tokens[begin:end].tolist()) for begin, end in ends]


def mixed(tmp_path: Path, **options: Any) -> Dataset:
    for name, word in (("novels", "walk"), ("code", "def x(y): "), ("wiki", "is a ")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{word} {index}\n" for index in range(200)))
    own: dict[str, Any] = {
        "sets": {
            "novels": SetConfig((str(tmp_path / "novels.txt"),), 2.0),
            "code": SetConfig((str(tmp_path / "code.txt"),), 1.0),
        },
        "validation_sets": {"wiki": (str(tmp_path / "wiki.txt"),)},
        "vocab_size": 300,
        "cache_dir": str(tmp_path / "cache"),
    }
    return prepare(CorpusConfig(**own | options), progress=False)


def test_sets_have_files_of_their_own(tmp_path: Path) -> None:
    data = mixed(tmp_path)
    assert list(data.train.token_files) == ["novels", "code"] and data.train.weights == {"novels": 2.0, "code": 1.0}
    assert list(data.validation) == ["novels", "code", "wiki"]
    for name, token_file in data.train.token_files.items():
        (train,), (held,) = texts(token_file, data.tokenizer), texts(data.validation[name], data.tokenizer)
        assert train + held == (tmp_path / f"{name}.txt").read_text()
    assert texts(data.validation["wiki"], data.tokenizer) == [(tmp_path / "wiki.txt").read_text()]
    assert data.train.num_tokens == sum(token_file.num_tokens for token_file in data.train.token_files.values())
    held = ", ".join(f"{name}: {token_file.num_tokens:,}" for name, token_file in data.validation.items())
    assert f"novels: {tmp_path}/novels.txt, 1 document, 1.7 kB, weight 2; code: " in data.description
    assert f"held out ({held}); BPE tokenizer of" in data.description


def test_weights_change_the_fingerprint_and_not_the_tokens(tmp_path: Path) -> None:
    before = mixed(tmp_path)
    sets = {name: SetConfig((str(tmp_path / f"{name}.txt"),), 5.0) for name in ("novels", "code")}
    after = mixed(tmp_path, sets=sets)
    assert after.fingerprint != before.fingerprint and after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert [token_file.fingerprint for token_file in after.train.token_files.values()] == [
        token_file.fingerprint for token_file in before.train.token_files.values()
    ]


def test_a_set_without_weight_is_measured_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module, "train_bpe", lambda found, size: train_bpe(seen.extend(found) or seen, size))
    sets = {
        "novels": SetConfig((str(tmp_path / "novels.txt"),)),
        "code": SetConfig((str(tmp_path / "code.txt"),), 0.0),
    }
    data = mixed(tmp_path, sets=sets)
    assert list(data.train.token_files) == ["novels"] and list(data.validation) == ["novels", "code", "wiki"]
    assert "walk" in "".join(seen) and "def" not in "".join(seen) and "is a" not in "".join(seen)


def test_a_tokenizer_learns_from_sets_by_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BPE_TEXT", 900)
    monkeypatch.setattr("gossamer.data.documents.MAX_CHUNK", 60)
    seen: list[str] = []
    monkeypatch.setattr(module, "train_bpe", lambda found, size: train_bpe(seen.extend(found) or seen, size))
    mixed(tmp_path)
    sizes = [sum(len(text) for text in seen if word in text) for word in ("walk", "def")]
    assert 500 < sizes[0] < 700 and 200 < sizes[1] < 400


def test_a_set_that_is_too_small_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a")
    (tmp_path / "empty.txt").write_text("")
    one = {"small": SetConfig((str(tmp_path / "one.txt"),)), "code": SetConfig((str(tmp_path / "code.txt"),))}
    with pytest.raises(UserError, match=r"^corpus\.sets\.small: the corpus is too small: its 1 bytes leave no text"):
        mixed(tmp_path, sets=one)
    with pytest.raises(UserError, match=r"^corpus\.validation_sets\.none: .*empty.txt: the file is empty"):
        mixed(tmp_path, validation_sets={"none": (str(tmp_path / "empty.txt"),)})


# The sets themselves: which text is trained on, which is held out, and that no file is both.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(f"{name} " * 20)
    return tmp_path


def opened(folder: Path, **options: Any) -> dict[str, TextSet]:
    config = CorpusConfig(cache_dir=str(folder / ".cache"), **options)
    return {one.name: one for one in open_sets(config, ProgressDisplay(False))}


def letters(one: TextSet, part: str) -> str:
    return "".join(sorted(set("".join(chunk.text for chunk in one.read() if chunk.part == part)) - {" "}))


def test_plain_paths(folder: Path) -> None:
    found = opened(folder, paths=(str(folder),), validation_paths=(str(folder / "b.txt"),))
    assert list(found) == ["held-out"] and found["held-out"].parts == ("train", "validation")
    assert (letters(found["held-out"], "train"), letters(found["held-out"], "validation")) == ("acd", "b")
    assert found["held-out"].validation_source == str(folder / "b.txt") and found["held-out"].num_bytes == 4 * 40


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
