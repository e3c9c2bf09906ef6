"""prepare: tokens in the cache, whole or not there, the same each time."""

import errno
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer.data import dataset as module
from gossamer.data import token_files as token_files_module
from gossamer.data import tokenize
from gossamer.data.config import CorpusConfig, SetConfig
from gossamer.data.dataset import Dataset, prepare, prepare_for_evaluation
from gossamer.data.token_files import TokenFile
from gossamer.data.tokenizer import EOT, Tokenizer, char_tokenizer, train_bpe
from gossamer.errors import UserError
from gossamer.files import locked

TEXTS = [f"document {index}: the quick brown fox é\n" * (index % 4 + 1) for index in range(60)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    os.utime(path, (time.time() - 100,) * 2)
    return path


def config(corpus: Path, **options: Any) -> CorpusConfig:
    own: dict[str, Any] = {"paths": (str(corpus),), "vocab_size": 300, "cache_dir": str(corpus.parent / "cache")}
    return CorpusConfig(**own | options)


def texts(token_file: TokenFile, tokenizer: Tokenizer) -> list[str]:
    ends = zip(token_file.offsets, token_file.offsets[1:], strict=False)
    return [tokenizer.decode(token_file.tokens[begin:end].tolist()) for begin, end in ends]


def train_of(data: Dataset) -> TokenFile:
    (token_file,) = data.train.token_files.values()
    return token_file


def held_of(data: Dataset) -> TokenFile:
    assert list(data.validation) == ["held-out"]
    return data.validation["held-out"]


def never(*arguments: object, **options: object) -> Iterator[Any]:
    raise AssertionError("done again although the cache had it")


def test_documents_become_tokens(corpus: Path) -> None:
    data = prepare(config(corpus), progress=False)
    found = texts(train_of(data), data.tokenizer), texts(held_of(data), data.tokenizer)
    assert sorted(found[0] + found[1]) == sorted(TEXTS) and found[1]
    for token_file in (train_of(data), held_of(data)):
        for begin, end in zip(token_file.offsets, token_file.offsets[1:], strict=False):
            delimiters = np.flatnonzero(token_file.tokens[begin:end] == data.tokenizer.eot_id)
            assert delimiters.tolist() == [0, end - begin - 1]
    assert data.train.num_bytes == sum(len(text.encode()) for text in found[0])
    assert data.tokenizer.num_bytes_per_token()[train_of(data).tokens].sum() == data.train.num_bytes


def test_the_second_start_does_nothing_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(config(corpus), progress=False)
    monkeypatch.setattr(module, "train_bpe", never)
    monkeypatch.setattr(tokenize, "_tokenize", never)
    monkeypatch.setattr("gossamer.data.corpus._scan", never)
    second = prepare(config(corpus), progress=False)
    assert isinstance(train_of(second).tokens, np.memmap)
    assert np.array_equal(train_of(first).tokens, train_of(second).tokens)
    assert np.array_equal(held_of(first).offsets, held_of(second).offsets)
    assert (first.fingerprint, first.description) == (second.fingerprint, second.description)
    assert train_of(first).fingerprint == train_of(second).fingerprint != held_of(first).fingerprint


def test_whatever_matters_makes_another_entry(corpus: Path, tmp_path: Path) -> None:
    def fingerprint(**options: Any) -> str:
        return prepare(config(corpus, **options), progress=False).fingerprint

    before = fingerprint()
    other = tmp_path / "other.txt"
    other.write_text("other text " * 50)
    prints = {before, fingerprint(vocab_size=270), fingerprint(tokenizer="char")}
    prints |= {fingerprint(paths=(str(corpus), str(other))), fingerprint(validation_paths=(str(other),))}
    assert len(prints) == 5
    corpus.write_text(corpus.read_text().replace("quick", "slow!"))
    assert fingerprint() not in prints
    moved = tmp_path / "moved.jsonl"
    corpus.write_text(corpus.read_text().replace("slow!", "quick"))
    corpus.rename(moved)
    assert fingerprint(paths=(str(moved),)) == before


def test_the_tokenizer_sees_training_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ab" * 90 + "ba" * 10)
    assert prepare(config(path, tokenizer="char"), progress=False).tokenizer.vocab_size == 3
    path.write_text("ab" * 90 + "bc" * 10)
    with pytest.raises(UserError, match=r"character 'c' .* --tokenizer bpe"):
        prepare(config(path, tokenizer="char"), progress=False)
    assert not list((tmp_path / "cache" / "shards").glob(".tmp-*"))


def test_bpe_sees_training_text_alone(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def spy(texts: Iterator[str], size: int) -> Tokenizer:
        seen.extend(texts)
        return train_bpe(seen, size)

    monkeypatch.setattr(module, "train_bpe", spy)
    data = prepare(config(corpus), progress=False)
    assert seen == texts(train_of(data), data.tokenizer)


def test_large_corpora_train_on_a_sample() -> None:
    texts_of_20 = [f"{index:04}" * 5 for index in range(1000)]
    sample = list(module._spread_sample(texts_of_20, 20_000, 1000))
    assert 45 <= len(sample) <= 51 and sample == list(module._spread_sample(texts_of_20, 20_000, 1000))
    gaps = np.diff([int(chunk[:4]) for chunk in sample])
    assert gaps.min() >= 15 and gaps.max() <= 25  # spread evenly from the first to the last
    assert list(module._spread_sample(texts_of_20, 900, 1000)) == texts_of_20


def test_explicit_validation_text(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.txt").write_text("to learn from\n" * 30)
    (folder / "held.txt").write_text("to measure on\n")
    data = prepare(config(folder, validation_paths=(str(folder / "held.txt"),)), progress=False)
    assert texts(train_of(data), data.tokenizer) == ["to learn from\n" * 30]
    assert texts(held_of(data), data.tokenizer) == ["to measure on\n"]
    assert str(folder / "held.txt") in data.description


def test_a_given_tokenizer_is_used(corpus: Path, tmp_path: Path) -> None:
    tokenizer = char_tokenizer(TEXTS)
    given = prepare(config(corpus, tokenizer="/nowhere"), tokenizer, progress=False)
    assert given.tokenizer is tokenizer and texts(train_of(given), tokenizer)
    tokenizer.save(tmp_path / "run" / "model")
    loaded = prepare(config(corpus, tokenizer=str(tmp_path / "run")), progress=False)
    assert loaded.fingerprint == given.fingerprint and loaded.tokenizer.kind == "char"
    with pytest.raises(UserError, match="no such tokenizer"):
        prepare(config(corpus, tokenizer="/nowhere"), progress=False)


def test_the_delimiter_spelt_in_a_document_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"before {EOT} after\n" * 20)
    data = prepare(config(path), progress=False)
    assert (train_of(data).tokens == data.tokenizer.eot_id).sum() == 2


def test_a_dataset_describes_itself_in_a_line(corpus: Path) -> None:
    data = prepare(config(corpus), progress=False)
    assert data.description == (
        f"{corpus}, 60 documents, 5.4 kB; {data.train.num_tokens:,} tokens to train on, {held_of(data).num_tokens:,} "
        f"held out (about a tenth of the documents); BPE tokenizer of {data.tokenizer.vocab_size}"
    )


def test_a_held_out_part_that_is_too_short_to_trust_is_warned_of(tmp_path: Path, corpus: Path) -> None:
    held = held_of(prepare(config(corpus))).num_tokens
    assert (prepare(config(corpus)).warning() or "").startswith(
        f"only {held:,} tokens (held-out) are held out, too few"
    )
    (tmp_path / "long.txt").write_text("".join(chr(97 + number % 26) for number in range(41_000)))
    (tmp_path / "short.txt").write_text("abc" * 100)
    named = {name: SetConfig((str(tmp_path / f"{name}.txt"),)) for name in ("long", "short")}
    mixed = prepare(config(corpus, paths=(), sets=named, tokenizer="char"))
    assert (mixed.warning() or "").startswith("only 32 tokens (short) are held out, too few")
    assert prepare(config(tmp_path / "long.txt", tokenizer="char")).warning() is None


def test_progress_lines(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(config(corpus))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "reading 6.9 kB of text",
        "training a bpe tokenizer",
        "learning 300 tokens from it",
        "tokenizing 5.4 kB",
    ]
    prepare(config(corpus))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("damage", ["train.bin", "validation.offsets.bin", "meta.json", "all"])
def test_damaged_entries_are_rebuilt(corpus: Path, damage: str) -> None:
    before = prepare(config(corpus), progress=False)
    expected = train_of(before).tokens.tolist(), held_of(before).offsets.tolist()
    (entry,) = (corpus.parent / "cache" / "shards").iterdir()
    for file in entry.iterdir():
        if damage in (file.name, "all"):
            content = file.read_bytes()
            file.unlink()  # the old one stays mapped
            file.write_bytes(content[:-3])
    after = prepare(config(corpus), progress=False)
    assert (train_of(after).tokens.tolist(), held_of(after).offsets.tolist()) == expected


def test_a_damaged_tokenizer_is_trained_again(corpus: Path) -> None:
    before = prepare(config(corpus), progress=False)
    (entry,) = (corpus.parent / "cache" / "tokenizers").iterdir()
    (entry / "tokenizer.json").write_text("{")
    assert prepare(config(corpus), progress=False).fingerprint == before.fingerprint


class FullDisk(io.FileIO):
    """Takes a few bytes, then has no room, as a full disk does to a real file."""

    def write(self, data: Any) -> int:
        if self.tell() + len(memoryview(data).cast("B")) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_full_disk_leaves_no_half_file(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files_module, "open", lambda path, mode: FullDisk(path, mode), raising=False)
    with pytest.raises(UserError, match=r"cache/shards: the disk is full; free some space") as caught:
        prepare(config(corpus), progress=False)
    assert "\n" not in str(caught.value) and not list((corpus.parent / "cache" / "shards").iterdir())


@pytest.mark.parametrize("content", ["a", "é"])
def test_too_small(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(
        UserError, match=r"the corpus is too small: its . bytes leave no text for train; give more with"
    ):
        prepare(config(path), progress=False)
    assert not list((tmp_path / "cache" / "shards").iterdir())


def test_a_corpus_that_changes_underneath(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.train_bpe

    def change(texts: Iterator[str], size: int) -> Tokenizer:
        tokenizer = real(texts, size)
        with open(corpus, "a") as file:
            file.write('{"text": "one more"}\n')
        return tokenizer

    monkeypatch.setattr(module, "train_bpe", change)
    with pytest.raises(UserError, match="the corpus changed while it was being read"):
        prepare(config(corpus), progress=False)
    assert not list((corpus.parent / "cache" / "shards").iterdir())


def test_one_file_of_everything(corpus: Path) -> None:
    data: Dataset = prepare(config(corpus), progress=False)
    token_file = prepare_for_evaluation([str(corpus)], config(corpus, paths=()), data.tokenizer, progress=False)
    assert texts(token_file, data.tokenizer) == TEXTS and token_file.num_bytes == sum(
        len(text.encode()) for text in TEXTS
    )


def test_large_documents_are_tokenized_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    text = "some words of text\n" * 500
    path.write_text(text)
    whole = prepare(config(path), progress=False)
    monkeypatch.setattr(tokenize, "_BATCH", 100)
    monkeypatch.setattr("gossamer.data.documents.MAX_CHUNK", 64)
    parts = prepare(config(path, cache_dir=str(tmp_path / "b")), whole.tokenizer, progress=False)
    assert texts(train_of(parts), whole.tokenizer) == [text[: len(text) * 9 // 10]]
    assert parts.train.num_documents == 1


PREPARE = (
    "import sys; from gossamer.data.config import CorpusConfig; from gossamer.data.dataset import prepare\n"
    "data = prepare(CorpusConfig(paths=(sys.argv[1],), vocab_size=300, cache_dir=sys.argv[2]))\n"
    "(train,) = data.train.token_files.values()\n"
    "print(data.fingerprint, int(train.tokens.sum()), 'torch' in sys.modules)\n"
)


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(gossamer.__file__).parents[1])}
    command = [sys.executable, "-c", PREPARE, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_of_several_processes_one_does_the_work(corpus: Path) -> None:
    several = [start(str(corpus), str(corpus.parent / "both")) for _ in range(3)]
    answers = [process.communicate(timeout=300) for process in several]
    here = prepare(config(corpus), progress=False)
    assert [out for out, _ in answers] == [f"{here.fingerprint} {int(train_of(here).tokens.sum())} False\n"] * 3
    told = [line for _, err in answers for line in err.splitlines() if "waiting" not in line]
    assert told == [
        "reading 6.9 kB of text",
        "training a bpe tokenizer",
        "learning 300 tokens from it",
        "tokenizing 5.4 kB",
    ]
    left = [path.name for path in (corpus.parent / "both").rglob(".tmp-*")]
    assert left == []


def test_the_work_of_a_killed_process_is_taken_over(corpus: Path) -> None:
    cache = corpus.parent / "cache"
    with locked(module._lock_file(config(corpus)), lambda: None):
        first, second = start(str(corpus), str(cache)), start(str(corpus), str(cache))
        for process in (first, second):
            assert process.stderr is not None and process.stderr.readline().startswith("waiting for another process")
        first.kill()
    assert second.communicate(timeout=300)[0].endswith(" False\n") and first.wait() == -9


def test_plain_paths_are_one_set(corpus: Path, tmp_path: Path) -> None:
    plain = prepare(config(corpus), progress=False)
    one = prepare(config(corpus, paths=(), sets={"all": SetConfig((str(corpus),))}), progress=False)
    assert train_of(plain).fingerprint == train_of(one).fingerprint and list(one.validation) == ["all"]
    other = tmp_path / "other.txt"
    other.write_text("other text\n")
    more = prepare(config(corpus, validation_sets={"other": (str(other),)}), progress=False)
    assert list(more.validation) == ["held-out", "other"] and train_of(more).fingerprint == train_of(plain).fingerprint
