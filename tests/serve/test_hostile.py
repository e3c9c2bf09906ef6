"""Thousands of hostile requests: the engine lives, no answer is a lie, and nobody else's is lost or changed.

`pytest -s -m slow tests/serve/test_hostile.py` sends the 6,000 whose counts are in docs/lab/serving.md.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from gossamer.infer.options import EngineOptions
from gossamer.serve.engine_worker import EngineConfig, build_engine
from hostile import Hostile, hostile_template
from live_service import Live, live

MORE = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def victim(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("hostile") / "model"
    shutil.copytree(tiny, folder)
    template = folder / "chat_template.jinja"
    template.write_text(hostile_template(template.read_text()))
    config = EngineConfig("cpu", EngineOptions(max_batch=8, page_size=16, snapshot_interval=32, prefill_chunk=64))
    with live(folder, partial(build_engine, folder, config)) as service:
        yield service


def attack(service: Live, count: int, at_once: int, seed: int, endless: float = 0.0) -> Hostile:
    texts = {}
    for prompt in ("a", "b" * 50, "word " * 30, "Grüße"):
        texts[prompt] = service.say(prompt, **MORE).json()["choices"][0]["message"]["content"]
    pid = service.service.engine.pid
    run = Hostile(service.url, texts, MORE, seed)
    asyncio.run(run.run(count, at_once, endless))
    print("", *run.lines(), sep="\n")
    assert not run.lies, run.lies[:5]
    service.until_idle()
    assert service.service.engine.pid == pid and "gossamer_engine_restarts_total 0.0" in service.get("/metrics").text
    return run


def test_a_hundred(victim: Live) -> None:
    run = attack(victim, 100, 12, seed=1)
    assert run.outcomes["good", "200"] > 15


@pytest.mark.slow
def test_six_thousand(victim: Live) -> None:
    run = attack(victim, 6000, 24, seed=2, endless=0.05)
    assert run.outcomes["good", "200"] > 1000
