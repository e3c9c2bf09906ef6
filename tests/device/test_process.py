"""What gossamer sets for a process: nothing in one that imports it, but subnormals, threads and pages in its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gossamer
from gossamer.cores import usable_cores
from gossamer.device import process, use_huge_pages

# How many sums of subnormal numbers are not zero, over all of PyTorch's threads, by their bits.
COUNT = """
import torch
tiny = torch.full((1 << 20,), 1, dtype=torch.int32).view(torch.float32)  # the smallest subnormal number
def left():
    return int(((tiny + tiny).view(torch.int32) != 0).sum())
"""


def printed(script: str, **environment: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | environment
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_program_that_imports_gossamer_keeps_its_mode() -> None:
    script = """
from gossamer import ops
print(left())
ops.rms_norm(torch.randn(1, 4096, 64), torch.ones(64), 1e-6)  # a native kernel on all threads, where there is one
print(left())
"""
    assert printed(COUNT + script) == [str(1 << 20)] * 2


@pytest.mark.parametrize(
    "start",
    [
        "from gossamer.device import prepare_process; prepare_process()",
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n"
        "    from gossamer.cli import main; main(['doctor'])",
    ],
    ids=["function", "verb"],
)
def test_in_gossamers_own_processes_subnormals_are_zero_in_every_thread(start: str) -> None:
    script = """
import threading
print(left())
answer = []
thread = threading.Thread(target=lambda: answer.append(left()))  # as the thread of a service is made
thread.start(); thread.join()
print(*answer)
"""
    assert printed(f"{start}\n{COUNT}{script}") == ["0", "0"]


@pytest.mark.skipif(usable_cores() < 2, reason="PyTorch takes no more threads than there are cores")
@pytest.mark.parametrize(("wanted", "threads"), [("", "1"), ("2", "2")])
def test_no_more_threads_than_cores_unless_asked_for(wanted: str, threads: str) -> None:
    script = """
import torch
from gossamer.device import process
process.usable_cores = lambda: 1
process.prepare_process()
print(torch.get_num_threads())
"""
    assert printed(script, OMP_NUM_THREADS=wanted) == [threads]


def test_every_parallel_region_of_the_kernels_flushes_subnormals() -> None:
    """The mode belongs to a thread, so each region sets it, by `parallel_for` or by itself."""
    sources = Path(gossamer.__file__).parent / "ops" / "native"
    regions = 0
    for path in sorted([*sources.glob("*.cpp"), *sources.glob("*.h")]):
        if path.name == "waiting.cpp":
            continue  # its threads only sleep
        for region in re.finditer(r"#pragma omp parallel\b[^\n]*\n(.*\n.*)\n", path.read_text(encoding="utf-8")):
            assert "const FlushSubnormals" in region[1], f"{path.name}: {region[0]}"
            regions += 1
    assert regions >= 5


def test_memory_in_huge_pages_holds_what_it_held() -> None:
    whole = torch.arange(3 << 20)
    parts = [whole[5:700], whole[1 << 20 :], torch.empty(0), torch.empty(9, device="meta")]
    before = whole.clone()
    held = use_huge_pages(parts)
    assert torch.equal(whole, before)
    whole += 1
    assert torch.equal(whole, before + 1)
    assert use_huge_pages(parts) >= held  # they are not given back


def test_a_system_without_huge_pages_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "_HUGE_PAGE_SIZE", tmp_path / "missing")
    assert use_huge_pages([torch.ones(1 << 20)]) == 0
