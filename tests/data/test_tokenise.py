"""Text to shards: the same bytes from any number of processes, in little memory, whole or not there."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import gossamer
from gossamer.data import tokenise as module
from gossamer.data.config import CorpusConfig
from gossamer.data.corpus import Piece
from gossamer.data.progress import Progress
from gossamer.data.shards import Shard
from gossamer.data.tokenizer import Tokenizer, train_bpe
from gossamer.data.workers import Encoders
from gossamer.errors import UserError

TEXT = "some words of text 日本 é\n" * 40
BPE = train_bpe([TEXT], 280)


def pieces() -> Iterator[Piece]:
    for index in range(60):
        text = TEXT[index:]
        yield Piece("validation" if index % 7 == 3 else "train", index % 3 == 0 or index % 7 in (3, 4), text, Path("a"))


def made(folder: Path, workers: int, tokenizer: Tokenizer = BPE) -> dict[str, Shard]:
    config = CorpusConfig(cache_dir=str(folder), workers=workers)
    total = sum(len(piece.text.encode()) for piece in pieces())
    return module.shards_of(config, "d", ("train", "validation"), pieces, total, tokenizer, Progress(False))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "shards").rglob("*") if path.is_file()}


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST", 15_000)
    monkeypatch.setattr(module, "_SHARE", 3000)
    started: list[int] = []

    class Spy(Encoders):
        def __init__(self, tokenizer: Tokenizer, count: int) -> None:
            started.append(count)
            super().__init__(tokenizer, count)

    monkeypatch.setattr(module, "Encoders", Spy)
    for workers in (1, 2, 3, 1000):
        made(tmp_path / str(workers), workers)
    assert started == [2, 3, 4]  # a thousand would be less than _LEAST bytes for each
    assert len({tuple(sorted(files(tmp_path / str(workers)).items())) for workers in (1, 2, 3, 1000)}) == 1
    assert set(files(tmp_path / "1")) == {"meta.json", "seal.json"} | {
        f"{part}.{kind}" for part in ("train", "validation") for kind in ("bin", "offsets.bin")
    }


def test_a_dead_process_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST", 1000)
    monkeypatch.setattr(module, "_SHARE", 3000)

    class Dying(Encoders):
        def encode(self, batches: object) -> Iterator[object]:  # type: ignore[override]
            for number, found in enumerate(super().encode(batches)):  # type: ignore[arg-type]
                if number == 2:
                    self.processes[0].kill()
                yield found

    monkeypatch.setattr(module, "Encoders", Dying)
    with pytest.raises(UserError, match=r"^a: the process that was to tokenise it was killed .*nothing is left half-w"):
        made(tmp_path, 2)
    assert list((tmp_path / "shards").iterdir()) == []
    monkeypatch.setattr(module, "Encoders", Encoders)
    assert made(tmp_path, 2)["train"].num_documents > 10


MEASURED = """
import sys
from gossamer.data import tokenise
from gossamer.data.config import CorpusConfig
from gossamer.data.dataset import prepare
tokenise._LEAST = int(sys.argv[3])
data = prepare(CorpusConfig(paths=(sys.argv[1],), vocab_size=2048, cache_dir=sys.argv[2], workers=2), progress=False)
print(data.train.num_bytes, sum(shard.num_bytes for shard in data.validation.values()), data.train.num_tokens)
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


def measured(folder: Path, cache: Path, least: int = module._LEAST) -> tuple[list[int], int, float]:
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
    """Half of ``size`` bytes in one file, a quarter in one of records, the rest in many files."""
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
