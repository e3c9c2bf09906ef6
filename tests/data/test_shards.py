"""Shards on disk: delimiters, offsets, dtypes and damage."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data.corpus import Piece
from gossamer.data.shards import Shard, ShardWriter, open_shard
from gossamer.data.tokenizer import Tokenizer, char_tokenizer
from gossamer.errors import UserError

TOKENIZER = char_tokenizer(["abc"])  # a, b, c are 1, 2, 3 and the delimiter is 0


def written(folder: Path, documents: list[list[str]], tokenizer: Tokenizer = TOKENIZER) -> dict[str, object]:
    writer = ShardWriter(folder, "train", tokenizer)
    for document in documents:
        for number, text in enumerate(document):
            writer.add(Piece("train", number == 0, text), tokenizer.encode(text))
    meta = writer.finish()
    writer.file.close()
    return json.loads(json.dumps(meta))


@given(st.lists(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3), min_size=1, max_size=6))
def test_every_document_between_delimiters(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    shard = open_shard(folder, "train", written(folder, documents), "f")
    assert shard.num_documents == len(documents) and shard.offsets.dtype == np.int64
    for index, document in enumerate(documents):
        tokens = shard.tokens[shard.offsets[index] : shard.offsets[index + 1]]
        assert tokens.tolist() == [0, *TOKENIZER.encode("".join(document)), 0]
    assert shard.offsets[-1] == shard.num_tokens == len(shard.tokens)
    assert shard.num_bytes == sum(len("".join(document)) for document in documents)


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    tokenizer = char_tokenizer([chr(code) for code in (*range(0x100, 0xD800), *range(0x10000, 0x13000))])
    assert tokenizer.vocab_size > 1 << 16
    last = chr(0x12FFF)
    shard = open_shard(tmp_path, "train", written(tmp_path, [[last]], tokenizer), "f")
    assert shard.tokens.dtype == np.uint32 and shard.tokens.tolist() == [0, tokenizer.vocab_size - 1, 0]
    assert open_shard(tmp_path, "train", written(tmp_path, [["a"]]), "f").tokens.dtype == np.uint16


@pytest.mark.parametrize("name", ["train.bin", "train.offsets.bin"])
def test_a_wrong_size_is_damage(tmp_path: Path, name: str) -> None:
    meta = written(tmp_path, [["ab"], ["c"]])
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1])
    with pytest.raises(ValueError, match="damaged"):
        open_shard(tmp_path, "train", meta, "f")


def test_parts_have_fingerprints_of_their_own(tmp_path: Path) -> None:
    meta = written(tmp_path, [["ab"]])
    for name in ("train.bin", "train.offsets.bin"):
        (tmp_path / name.replace("train", "validation")).write_bytes((tmp_path / name).read_bytes())
    shards = [open_shard(tmp_path, part, meta, key) for part in ("train", "validation") for key in ("f", "g")]
    assert len({shard.fingerprint for shard in shards}) == 4 and all(isinstance(shard, Shard) for shard in shards)


def test_reading_is_slicing(tmp_path: Path) -> None:
    shard = open_shard(tmp_path, "train", written(tmp_path, [["abc"], ["ca"]]), "f")
    in_memory = Shard(np.asarray(shard.tokens), shard.offsets, shard.num_bytes, "f")
    for begin, count in ((0, 1), (3, 4), (0, shard.num_tokens)):
        expected = shard.tokens[begin : begin + count].tolist()
        assert shard.read(begin, count).tolist() == in_memory.read(begin, count).tolist() == expected


def test_a_lost_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = open_shard(tmp_path, "train", written(tmp_path, [["abc"] * 10]), "f")
    (tmp_path / "train.bin").rename(tmp_path / "elsewhere")
    assert shard.read(1, 3).tolist() == [1, 2, 3]  # open is open

    def gone(*arguments: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("os.pread", gone)
    with pytest.raises(UserError, match=r"train\.bin: can no longer be read \(Stale file handle\); .* --resume"):
        shard.read(0, 2)
    monkeypatch.undo()
    os.truncate(tmp_path / "elsewhere", 8)
    assert shard.read(0, 4).tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"train\.bin: was cut short while it was in use"):
        shard.read(0, 5)
