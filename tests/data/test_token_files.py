"""Token files on disk: delimiters, offsets, dtypes and damage."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data.corpus import Chunk
from gossamer.data.token_files import Mixture, TokenFile, TokenFileWriter, open_token_file
from gossamer.data.tokenizer import Tokenizer, char_tokenizer
from gossamer.errors import UserError

TOKENIZER = char_tokenizer(["abc"])  # a, b, c are 1, 2, 3 and the delimiter is 0


def written(folder: Path, documents: list[list[str]], tokenizer: Tokenizer = TOKENIZER) -> dict[str, object]:
    writer = TokenFileWriter(folder, "train", tokenizer)
    for document in documents:
        for number, text in enumerate(document):
            writer.add(Chunk("train", number == 0, text), tokenizer.encode(text))
    meta = writer.finish()
    writer.file.close()
    return json.loads(json.dumps(meta))


@given(st.lists(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3), min_size=1, max_size=6))
def test_every_document_between_delimiters(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    token_file = open_token_file(folder, "train", written(folder, documents), "f")
    assert token_file.num_documents == len(documents) and token_file.offsets.dtype == np.int64
    for index, document in enumerate(documents):
        tokens = token_file.tokens[token_file.offsets[index] : token_file.offsets[index + 1]]
        assert tokens.tolist() == [0, *TOKENIZER.encode("".join(document)), 0]
    assert token_file.offsets[-1] == token_file.num_tokens == len(token_file.tokens)
    assert token_file.num_bytes == sum(len("".join(document)) for document in documents)


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    tokenizer = char_tokenizer([chr(code) for code in (*range(0x100, 0xD800), *range(0x10000, 0x13000))])
    assert tokenizer.vocab_size > 1 << 16
    last = chr(0x12FFF)
    token_file = open_token_file(tmp_path, "train", written(tmp_path, [[last]], tokenizer), "f")
    assert token_file.tokens.dtype == np.uint32 and token_file.tokens.tolist() == [0, tokenizer.vocab_size - 1, 0]
    assert open_token_file(tmp_path, "train", written(tmp_path, [["a"]]), "f").tokens.dtype == np.uint16


@pytest.mark.parametrize("name", ["train.bin", "train.offsets.bin"])
def test_a_wrong_size_is_damage(tmp_path: Path, name: str) -> None:
    meta = written(tmp_path, [["ab"], ["c"]])
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1])
    with pytest.raises(ValueError, match="damaged"):
        open_token_file(tmp_path, "train", meta, "f")


def test_parts_have_fingerprints_of_their_own(tmp_path: Path) -> None:
    meta = written(tmp_path, [["ab"]])
    for name in ("train.bin", "train.offsets.bin"):
        (tmp_path / name.replace("train", "validation")).write_bytes((tmp_path / name).read_bytes())
    token_files = [open_token_file(tmp_path, part, meta, key) for part in ("train", "validation") for key in ("f", "g")]
    assert len({token_file.fingerprint for token_file in token_files}) == 4 and all(
        isinstance(token_file, TokenFile) for token_file in token_files
    )


def test_reading_is_slicing(tmp_path: Path) -> None:
    token_file = open_token_file(tmp_path, "train", written(tmp_path, [["abc"], ["ca"]]), "f")
    in_memory = TokenFile(np.asarray(token_file.tokens), token_file.offsets, token_file.num_bytes, "f")
    for begin, count in ((0, 1), (3, 4), (0, token_file.num_tokens)):
        expected = token_file.tokens[begin : begin + count].tolist()
        assert token_file.read(begin, count).tolist() == in_memory.read(begin, count).tolist() == expected


def test_a_lost_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token_file = open_token_file(tmp_path, "train", written(tmp_path, [["abc"] * 10]), "f")
    (tmp_path / "train.bin").rename(tmp_path / "elsewhere")
    assert token_file.read(1, 3).tolist() == [1, 2, 3]  # open is open

    def gone(*arguments: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("os.pread", gone)
    with pytest.raises(UserError, match=r"train\.bin: can no longer be read \(Stale file handle\); .* --resume"):
        token_file.read(0, 2)
    monkeypatch.undo()
    os.truncate(tmp_path / "elsewhere", 8)
    assert token_file.read(0, 4).tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"train\.bin: was cut short while it was in use"):
        token_file.read(0, 5)


# Mixtures of several files.


def token_file(tokens: int) -> TokenFile:
    return TokenFile(np.zeros(tokens, np.uint16), np.array([0, tokens]), 10 * tokens, "f")


def test_a_mixture_counts_the_sets_that_have_a_weight() -> None:
    mixture = Mixture({"a": token_file(5), "b": token_file(7), "c": token_file(9)}, {"a": 1, "b": 2.5, "c": 0})
    assert (mixture.num_tokens, mixture.num_documents, mixture.num_bytes) == (12, 2, 120)
    assert mixture.weights == {"a": 1.0, "b": 2.5} and list(mixture.token_files) == ["a", "b"]
    assert Mixture({"a": token_file(5), "b": token_file(7)}).weights == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_weights_that_leave_nothing_to_train_on_are_refused(weight: float) -> None:
    with pytest.raises(UserError, match=rf"^sets\.a\.weight = {weight}: must be >= 0"):
        Mixture({"a": token_file(5), "b": token_file(5)}, {"a": weight, "b": 1})
    with pytest.raises(UserError, match=r"^sets: all weights are 0, and nothing is left to train on"):
        Mixture({"a": token_file(5)}, {"a": 0})
