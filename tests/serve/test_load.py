"""Many clients at once, slow, leaving, malformed and oversized ones among them, and an engine that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from engine_double import write_tokenizer
from live_process import Process, resident
from load_run import Load, Report

REQUESTS, STEPS = 10_000, 20
GROWTH = 6.0
"""MiB from the first quarter to the end; a leak of a KiB a request would take more."""
SAID = {f"SAY {text}": text for text in ("a", "Grüße " * 10, "x" * 300, "one\ntwo", "SAY")}


def clients(service: Process, load: Load, count: int, at_once: int, kill: bool) -> Report:
    async def halfway() -> None:
        os.kill(service.engine(), signal.SIGKILL)

    report = asyncio.run(load.run(count, at_once, halfway if kill else None))
    print("", *report.lines(), sep="\n")
    assert not report.lies, report.lies[:5]
    return report


def settled(load: Load) -> None:
    """Nothing is left with the engine, and it answers."""
    base = f"http://127.0.0.1:{load.port}"
    deadline = time.monotonic() + 60
    while (
        httpx2.get(f"{base}/ready").status_code != 200
        or "gossamer_active_requests 0.0" not in httpx2.get(f"{base}/metrics").text
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def end(service: Process) -> None:
    service.process.terminate()
    status, log = service.end(120)
    assert status == 0 and "Traceback" not in log


def port_of(service: Process) -> int:
    return int(service.url().rsplit(":", 1)[1])


def test_many_clients(tmp_path: Path) -> None:
    service = Process.double(write_tokenizer(tmp_path))
    port = port_of(service)
    for kill, least in ((False, 50), (True, 15)):
        load = Load(port, SAID)
        report = clients(service, load, 100, 60, kill)
        settled(load)
        complete = sum(count for (_, outcome), count in report.outcomes.items() if outcome == "complete")
        assert complete > least
    end(service)


@pytest.fixture
def real(tiny: Path) -> Iterator[tuple[Process, Load]]:
    """`gossamer serve`, and clients that know what it answers when nobody else asks."""
    service = Process.real(tiny)
    port, more = port_of(service), {"temperature": 0, "max_tokens": 24}
    texts = {}
    for prompt in ("a", "b" * 200, "word " * 100, "word " * 100 + "more", "Grüße"):
        asked = {"messages": [{"role": "user", "content": prompt}], **more}
        answer = httpx2.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=asked, timeout=60).json()
        texts[prompt] = answer["choices"][0]["message"]["content"]
    load = Load(port, texts, more)
    yield service, load
    settled(load)
    end(service)


@pytest.mark.slow
def test_a_real_engine_that_is_killed_under_load(real: tuple[Process, Load]) -> None:
    clients(*real, 600, 48, kill=True)


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_clients_of_a_real_engine(real: tuple[Process, Load]) -> None:
    """An hour of almost three requests a second. Caches fill within the first quarter; after that nothing grows."""
    service, load = real
    pids = {"service": service.process.pid, "engine": service.engine()}
    told = []
    for number in range(1, STEPS + 1):
        load.seed = number
        asyncio.run(load.run(REQUESTS // STEPS, 48))
        told.append({name: resident(pid) for name, pid in pids.items()})
        print(f"{number * REQUESTS // STEPS} requests:", {name: f"{value:.1f} MiB" for name, value in told[-1].items()})
    print("", *load.report.lines(), sep="\n")
    assert not load.report.lies, load.report.lies[:5]
    for name in pids:
        assert told[-1][name] - told[STEPS // 4 - 1][name] < GROWTH, name
