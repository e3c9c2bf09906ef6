"""prepare with several sets: shards of their own, one tokenizer, weights."""

from pathlib import Path
from typing import Any

import pytest

from gossamer.data import dataset as module
from gossamer.data.config import CorpusConfig, SetConfig
from gossamer.data.dataset import Dataset, Shard, prepare
from gossamer.data.tokenizer import Tokenizer, train_bpe
from gossamer.errors import UserError


def texts(shard: Shard, tokenizer: Tokenizer) -> list[str]:
    ends = zip(shard.offsets, shard.offsets[1:], strict=False)
    return [tokenizer.decode(shard.tokens[begin:end].tolist()) for begin, end in ends]


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


def test_sets_have_shards_of_their_own(tmp_path: Path) -> None:
    data = mixed(tmp_path)
    assert list(data.train.shards) == ["novels", "code"] and data.train.weights == {"novels": 2.0, "code": 1.0}
    assert list(data.validation) == ["novels", "code", "wiki"]
    for name, shard in data.train.shards.items():
        (train,), (held,) = texts(shard, data.tokenizer), texts(data.validation[name], data.tokenizer)
        assert train + held == (tmp_path / f"{name}.txt").read_text()
    assert texts(data.validation["wiki"], data.tokenizer) == [(tmp_path / "wiki.txt").read_text()]
    assert data.train.num_tokens == sum(shard.num_tokens for shard in data.train.shards.values())
    held = ", ".join(f"{name}: {shard.num_tokens:,}" for name, shard in data.validation.items())
    assert f"novels: {tmp_path}/novels.txt, 1 document, 1.7 kB, weight 2; code: " in data.description
    assert f"held out ({held}); BPE tokenizer of" in data.description


def test_weights_change_the_fingerprint_and_not_the_tokens(tmp_path: Path) -> None:
    before = mixed(tmp_path)
    sets = {name: SetConfig((str(tmp_path / f"{name}.txt"),), 5.0) for name in ("novels", "code")}
    after = mixed(tmp_path, sets=sets)
    assert after.fingerprint != before.fingerprint and after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert [shard.fingerprint for shard in after.train.shards.values()] == [
        shard.fingerprint for shard in before.train.shards.values()
    ]


def test_a_set_without_weight_is_measured_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module, "train_bpe", lambda found, size: train_bpe(seen.extend(found) or seen, size))
    sets = {
        "novels": SetConfig((str(tmp_path / "novels.txt"),)),
        "code": SetConfig((str(tmp_path / "code.txt"),), 0.0),
    }
    data = mixed(tmp_path, sets=sets)
    assert list(data.train.shards) == ["novels"] and list(data.validation) == ["novels", "code", "wiki"]
    assert "walk" in "".join(seen) and "def" not in "".join(seen) and "is a" not in "".join(seen)


def test_a_tokenizer_learns_from_sets_by_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAMPLE", 900)
    monkeypatch.setattr("gossamer.data.sources.PIECE", 60)
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
