"""Workers: what they may take, how they end, and that nobody else notices."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gossamer.isolated import Handler, IsolatedWorkers, RefusedError, WorkerFailedError

MEMORY = 64 << 20


def troublesome(word: str) -> Callable[[], Handler]:
    """A handler that does what it is told."""
    if word == "refuse":
        raise RefusedError("not with me")
    if word == "die":
        os._exit(3)

    def begin() -> Handler:
        said: list[bytes] = []

        def handle(message: bytes) -> bytes:
            said.append(message)
            match message:
                case b"loop":
                    while True:
                        pass
                case b"eat":
                    return b"x" * (1 << 30)
                case b"eat slowly":
                    held = []
                    while True:
                        held.append(bytearray(1 << 20))
                case b"crash":
                    os.abort()
                case b"refuse":
                    raise RefusedError("no")
                case b"fail":
                    raise ValueError("of all things")
                case b"pid":
                    return b"%d" % os.getpid()
            return word.encode() + b" ".join(said)

        return handle

    return begin


@pytest.fixture(scope="module")
def workers() -> IsolatedWorkers:
    return IsolatedWorkers(troublesome, "hello ", memory=MEMORY)


def test_a_worker_remembers_and_another_knows_nothing_of_it(workers):
    first, second = workers.worker(), workers.worker()
    assert first.ask(b"a", 60) == b"hello a" and first.ask(b"b", 60) == b"hello a b"
    assert second.ask(b"c", 60) == b"hello c"
    assert first.ask(b"pid", 60) != second.ask(b"pid", 60)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"loop", "not done in 0.2 seconds"),
        (b"eat", "too much memory"),
        (b"eat slowly", "too much memory"),
        (b"crash", "too much memory, or nested too deeply"),
    ],
)
def test_what_takes_too_much_dies_alone(workers, message, reason):
    other, tried = workers.worker(), workers.worker()
    began = time.monotonic()
    with pytest.raises(WorkerFailedError, match=reason):
        tried.ask(message, 0.2 if message == b"loop" else 5)
    assert time.monotonic() - began < 60
    assert other.ask(b"a", 60) == b"hello a" and workers.worker().ask(b"b", 60) == b"hello b"


@pytest.mark.parametrize(("message", "words"), [(b"refuse", "no"), (b"fail", "ValueError: of all things")])
def test_what_is_refused_leaves_the_worker_as_it_was(workers, message, words):
    worker = workers.worker()
    with pytest.raises(RefusedError) as refusal:
        worker.ask(message, 60)
    assert str(refusal.value) == words and worker.ask(b"a", 60) == b"hello " + message + b" a"


def test_the_time_of_one_answer_is_not_the_nexts(workers):
    worker = workers.worker()
    for _ in range(30):
        assert worker.ask(b"pid", 0.05)


def test_a_failed_preparation_is_told_to_each_who_asks():
    refusing = IsolatedWorkers(troublesome, "refuse", memory=MEMORY)
    for _ in range(2):
        with pytest.raises(RefusedError, match="not with me"):
            refusing.worker()
    with pytest.raises(WorkerFailedError, match="has died"):
        IsolatedWorkers(troublesome, "die", memory=MEMORY).worker()


def test_a_preparation_that_was_killed_is_done_again():
    workers = IsolatedWorkers(troublesome, "hello ", memory=MEMORY)
    workers.worker()
    for child in children(os.getpid()):
        if b"isolated" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, 9)
    time.sleep(0.2)
    assert workers.worker().ask(b"a", 60) == b"hello a"


def test_threads_may_share_it(workers):
    found = []

    def ask(number: int) -> None:
        worker = workers.worker()
        found.append(all(worker.ask(b"%d" % number, 60).endswith(b"%d" % number) for _ in range(20)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8


def children(pid: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int(entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                yield int(entry.name)


SCRIPT = """
import os, signal
from test_isolated import MEMORY, troublesome
from gossamer.isolated import IsolatedWorkers
workers = IsolatedWorkers(troublesome, "", memory=MEMORY)
held = [workers.worker() for _ in range(3)]
print(*(worker.ask(b"pid", 60).decode() for worker in held), flush=True)
held[0].send(b"loop", 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_outlives_who_asked():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=300)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
