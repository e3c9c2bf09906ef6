"""Text to token files: the same bytes from any number of processes, in little memory, whole or not there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import gossamer
from gossamer.data import tokenize as module
from gossamer.data.config import CorpusConfig
from gossamer.data.corpus import Chunk
from gossamer.data.progress import ProgressDisplay
from gossamer.data.token_files import TokenFile
from gossamer.data.tokenize import TokenizerProcesses
from gossamer.data.tokenizer import EOT, Tokenizer, char_tokenizer, train_bpe
from gossamer.errors import UserError

TEXT = "some words of text 日本 é\n" * 40
BPE = train_bpe([TEXT], 280)


def chunks() -> Iterator[Chunk]:
    for index in range(60):
        text = TEXT[index:]
        yield Chunk("validation" if index % 7 == 3 else "train", index % 3 == 0 or index % 7 in (3, 4), text, Path("a"))


def made(folder: Path, workers: int, tokenizer: Tokenizer = BPE) -> dict[str, TokenFile]:
    config = CorpusConfig(cache_dir=str(folder), workers=workers)
    total = sum(len(chunk.text.encode()) for chunk in chunks())
    return module.open_or_tokenize(
        config,
        digest="d",
        parts=("train", "validation"),
        read=chunks,
        num_bytes=total,
        tokenizer=tokenizer,
        progress=ProgressDisplay(False),
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "shards").rglob("*") if path.is_file()}


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MIN_PROCESS_BYTES", 15_000)
    monkeypatch.setattr(module, "_PROCESS_BATCH", 3000)
    started: list[int] = []

    class Spy(TokenizerProcesses):
        def __init__(self, tokenizer: Tokenizer, count: int) -> None:
            started.append(count)
            super().__init__(tokenizer, count)

    monkeypatch.setattr(module, "TokenizerProcesses", Spy)
    for workers in (1, 2, 3, 1000):
        made(tmp_path / str(workers), workers)
    assert started == [2, 3, 4]  # a thousand would be less than _MIN_PROCESS_BYTES bytes for each
    assert len({tuple(sorted(files(tmp_path / str(workers)).items())) for workers in (1, 2, 3, 1000)}) == 1
    assert set(files(tmp_path / "1")) == {"meta.json", "seal.json"} | {
        f"{part}.{kind}" for part in ("train", "validation") for kind in ("bin", "offsets.bin")
    }


def test_a_dead_process_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MIN_PROCESS_BYTES", 1000)
    monkeypatch.setattr(module, "_PROCESS_BATCH", 3000)

    class Dying(TokenizerProcesses):
        def encode(self, batches: object) -> Iterator[object]:  # type: ignore[override]
            for number, found in enumerate(super().encode(batches)):  # type: ignore[arg-type]
                if number == 2:
                    self.processes[0].kill()
                yield found

    monkeypatch.setattr(module, "TokenizerProcesses", Dying)
    with pytest.raises(UserError, match=r"^a: the process that tokenized it was killed .*nothing is left half-w"):
        made(tmp_path, 2)
    assert list((tmp_path / "shards").iterdir()) == []
    monkeypatch.setattr(module, "TokenizerProcesses", TokenizerProcesses)
    assert made(tmp_path, 2)["train"].num_documents > 10


MEASURED = """
import sys
from gossamer.data import tokenize
from gossamer.data.config import CorpusConfig
from gossamer.data.dataset import prepare
tokenize._MIN_PROCESS_BYTES = int(sys.argv[3])
data = prepare(CorpusConfig(paths=(sys.argv[1],), vocab_size=2048, cache_dir=sys.argv[2], workers=2), progress=False)
print(data.train.num_bytes, sum(token_file.num_bytes for token_file in data.validation.values()), data.train.num_tokens)
"""


def resident(root: int) -> int:
    """Bytes that a process and its descendants have in memory."""
    parents: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(fields[1]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    family = {root}
    while more := {pid for pid, (parent, _) in parents.items() if parent in family} - family:
        family |= more
    return sum(parents[pid][1] for pid in family if pid in parents)


def measured(folder: Path, cache: Path, least: int = module._MIN_PROCESS_BYTES) -> tuple[list[int], int, float]:
    """Prepare a folder in a process of its own; what it printed, its peak of resident bytes, and the seconds.

    Args:
        folder: of texts
        cache: for what is made of them
        least: bytes of text that are worth a process of their own
    """
    environment = os.environ | {"PYTHONPATH": str(Path(gossamer.__file__).parents[1])}
    command = [sys.executable, "-c", MEASURED, str(folder), str(cache), str(least)]
    began, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.1)
        assert process.stdout is not None and process.returncode == 0
        answer = [int(word) for word in process.stdout.read().split()]
    return answer, peak, time.monotonic() - began


def write_corpus(folder: Path, size: int) -> int:
    """Half of `size` bytes in one file, a quarter in one of records, the rest in many files."""
    folder.mkdir()
    words = [f"{'abcdefgh'[index % 8]}{'aeiou'[index % 5]}{index % 997:x}" for index in range(40_000)]
    line = [" ".join(words[index : index + 12]) + ".\n" for index in range(0, 39_000, 13)]
    block = "".join(line)
    written = 0
    with open(folder / "huge.txt", "w") as file:
        while written < size // 2:
            written += file.write(block)
    with open(folder / "records.jsonl", "w") as file:
        while written < size * 3 // 4:
            for index in range(0, len(line), 50):
                text = "".join(line[index : index + 50])
                file.write('{"text": "' + text.replace("\n", "\\n") + '"}\n')
                written += len(text)
    number = 0
    while written < size:
        text = block[number % 1000 :][: 50_000 + number % 77_777]
        (folder / f"{number:05}.txt").write_text(text)
        written += len(text)
        number += 1
    return written


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="resident memory is read from /proc")
def test_memory_of_a_small_corpus(tmp_path: Path) -> None:
    total = write_corpus(tmp_path / "text", 3_000_000)  # two processes
    (train, held_out, _), peak, _ = measured(tmp_path / "text", tmp_path / "cache", 1 << 20)
    assert train + held_out == total and peak < 1_000_000_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="resident memory is read from /proc")
def test_memory_of_a_gigabyte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total = write_corpus(tmp_path / "text", 1_000_000_000)
    (train, held_out, tokens), peak, seconds = measured(tmp_path / "text", tmp_path / "cache")
    with capsys.disabled():
        print(f"\n{total / 1e6:.0f} MB in {seconds:.0f} s, {tokens:,} tokens, at most {peak / 1e6:.0f} MB resident")
    assert total >= 10**9 and train + held_out == total and peak < 2_000_000_000


# The processes.

TEXTS = [f"{EOT} text {index} é 日本\n" * (index % 3 + 1) for index in range(50)]
BPE = train_bpe(TEXTS, 280)


def batches(read: list[int] | None = None) -> Iterator[list[Chunk]]:
    for index in range(0, len(TEXTS), 2):
        if read is not None:
            read.append(index)
        yield [Chunk("train", True, text, Path(f"{index}.txt")) for text in TEXTS[index : index + 2]]


@pytest.mark.parametrize("count", [1, 3])
def test_the_same_ids_in_the_same_order(count: int) -> None:
    read: list[int] = []
    with TokenizerProcesses(BPE, count) as encoders:
        pids = [process.pid for process in encoders.processes]
        assert len(pids) == count
        for number, (batch, encoded) in enumerate(encoders.encode(batches(read)), 1):
            assert [chunk.text for chunk in batch] == TEXTS[2 * number - 2 : 2 * number]
            assert [ids.tolist() for ids in encoded] == BPE.encode_batch([chunk.text for chunk in batch])
            assert all(ids.dtype == "uint16" for ids in encoded)
            assert len(read) <= number + count  # one with each process and no more
    assert number == len(TEXTS) // 2
    assert all(process.poll() is not None for process in encoders.processes)


def test_a_process_that_dies_is_reported_with_its_file() -> None:
    with TokenizerProcesses(BPE, 2) as encoders:
        found = encoders.encode(batches())
        next(found)
        next(found)
        encoders.processes[0].send_signal(signal.SIGSTOP)
        os.kill(encoders.processes[1].pid, signal.SIGKILL)
        encoders.processes[1].wait()
        encoders.processes[0].send_signal(signal.SIGCONT)
        message = (
            r"^\d+\.txt: the process that .* was killed \(SIGKILL, perhaps for lack of memory\); "
            r".*corpus.workers 1 if memory is short$"
        )
        with pytest.raises(UserError, match=message):
            list(found)


def test_a_process_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(UserError, match=r"^cannot start 2 processes .*No such file.*; use fewer with --corpus.workers"):
        TokenizerProcesses(BPE, 2)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with TokenizerProcesses(BPE, 1) as encoders, pytest.raises(UserError, match="stopped with exit status 1"):
        list(encoders.encode(batches()))


def test_text_that_cannot_be_encoded_is_named_with_its_file() -> None:
    with TokenizerProcesses(char_tokenizer(TEXTS), 2) as encoders:
        bad = [Chunk("train", True, "text ß", Path("bad.txt")), Chunk("train", True, "text", Path("good.txt"))]
        with pytest.raises(UserError, match=r"^bad.txt to good.txt: character 'ß' .* --tokenizer bpe"):
            list(encoders.encode([bad]))
