"""Tokenising in processes: the same ids in the same order, and a clear word when one of them is gone."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossamer.data.corpus import Piece
from gossamer.data.tokenizer import EOT, char_tokenizer, train_bpe
from gossamer.data.workers import Encoders
from gossamer.errors import UserError

TEXTS = [f"{EOT} text {index} é 日本\n" * (index % 3 + 1) for index in range(50)]
BPE = train_bpe(TEXTS, 280)


def batches(read: list[int] | None = None) -> Iterator[list[Piece]]:
    for index in range(0, len(TEXTS), 2):
        if read is not None:
            read.append(index)
        yield [Piece("train", True, text, Path(f"{index}.txt")) for text in TEXTS[index : index + 2]]


@pytest.mark.parametrize("count", [1, 3])
def test_the_same_ids_in_the_same_order(count: int) -> None:
    read: list[int] = []
    with Encoders(BPE, count) as encoders:
        pids = [process.pid for process in encoders.processes]
        assert len(pids) == count
        for number, (batch, encoded) in enumerate(encoders.encode(batches(read)), 1):
            assert [piece.text for piece in batch] == TEXTS[2 * number - 2 : 2 * number]
            assert [ids.tolist() for ids in encoded] == BPE.encode_batch([piece.text for piece in batch])
            assert all(ids.dtype == "uint16" for ids in encoded)
            assert len(read) <= number + count  # one with each process and no more
    assert number == len(TEXTS) // 2
    assert all(process.poll() is not None for process in encoders.processes)


def test_a_process_that_dies_is_reported_with_its_file() -> None:
    with Encoders(BPE, 2) as encoders:
        found = encoders.encode(batches())
        next(found)
        next(found)
        encoders.processes[0].send_signal(signal.SIGSTOP)
        os.kill(encoders.processes[1].pid, signal.SIGKILL)
        encoders.processes[1].wait()
        encoders.processes[0].send_signal(signal.SIGCONT)
        message = (
            r"^\d+\.txt: the process that .* was killed \(SIGKILL, maybe for want of memory\); .*corpus.workers 1$"
        )
        with pytest.raises(UserError, match=message):
            list(found)


def test_a_process_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(
        UserError, match=r"^cannot start 2 processes .*No such file.*; take fewer with --corpus.workers"
    ):
        Encoders(BPE, 2)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with Encoders(BPE, 1) as encoders, pytest.raises(UserError, match="stopped with exit status 1"):
        list(encoders.encode(batches()))


def test_text_that_cannot_be_encoded_is_named_with_its_file() -> None:
    with Encoders(char_tokenizer(TEXTS), 2) as encoders:
        bad = [Piece("train", True, "text ß", Path("bad.txt")), Piece("train", True, "text", Path("good.txt"))]
        with pytest.raises(UserError, match=r"^bad.txt to good.txt: character 'ß' .* --tokenizer bpe"):
            list(encoders.encode([bad]))
