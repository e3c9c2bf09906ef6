"""Hundreds of clients, slow, leaving, malformed and oversized ones among them, and an engine that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx2
import pytest

from engine_double import write_tokenizer
from live_process import Process, resident
from load_run import Load, Report

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
    status, log = service.end(40)
    assert status == 0 and "Traceback" not in log


def port_of(service: Process) -> int:
    return int(service.url().rsplit(":", 1)[1])


@pytest.mark.parametrize("kill", [False, True])
def test_hundreds_of_clients(tmp_path: Path, kill: bool) -> None:
    service = Process.double(write_tokenizer(tmp_path))
    load = Load(port_of(service), SAID)
    report = clients(service, load, 300, 60, kill)
    settled(load)
    complete = sum(count for (_, outcome), count in report.outcomes.items() if outcome == "complete")
    assert complete > (50 if kill else 150)
    end(service)


@pytest.mark.slow
def test_memory_stays_flat_over_an_hours_worth_of_clients(tmp_path: Path) -> None:
    """Ten thousand requests: an hour of almost three a second."""
    service = Process.double(write_tokenizer(tmp_path))
    port = port_of(service)
    flat(service, lambda count, seed: clients(service, Load(port, SAID, seed=seed), count, 64, False), 10_000)
    settled(Load(port, SAID))
    end(service)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_a_real_engine_under_load(tiny: Path, kill: bool) -> None:
    service = Process.real(tiny)
    port, more = port_of(service), {"temperature": 0, "max_tokens": 24}
    texts = {}
    for prompt in ("a", "b" * 200, "word " * 100, "word " * 100 + "more", "Grüße"):
        asked = {"messages": [{"role": "user", "content": prompt}], **more}
        answer = httpx2.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=asked, timeout=60).json()
        texts[prompt] = answer["choices"][0]["message"]["content"]
    if kill:
        clients(service, Load(port, texts, more), 600, 48, kill=True)
    else:
        flat(service, lambda count, seed: clients(service, Load(port, texts, more, seed), count, 48, False), 3600)
    settled(Load(port, texts))
    end(service)


def flat(service: Process, run, count: int) -> None:
    """Run a quarter of the clients, then the rest; memory does not grow in between."""
    pids = {"service": service.process.pid, "engine": service.engine()}
    run(count // 4, 0)
    before = {name: resident(pid) for name, pid in pids.items()}
    run(count - count // 4, 1)
    for name, pid in pids.items():
        after = resident(pid)
        print(f"{name}: {before[name]:.1f} MiB after {count // 4} requests, {after:.1f} MiB after {count}")
        assert after < before[name] * 1.1 + 8, name
