"""How the benchmarks measure: subjects in processes of their own take turns, beside the machine's own rates.

A subject is a function that is built once in a fresh process and then called again and again. Its process has its own
allocator and its own peak memory, and sleeps while another subject has its turn. Medians of the turns are compared
within one run, never with figures of another day or machine.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import environment  # (before PyTorch; every subject's process inherits it)
import torch

from gossamer.certify.timing import Call, copy_rate, seconds_of

PATIENCE = 60.0  # seconds of a call that is not the first, which may compile something


class Subject:
    """Something to be timed, in a process of its own.

    Args:
        name: name in the table
        build: a function at a module's top level; it is called in the new process with `arguments` and returns what is
            timed
        arguments: arguments for `build`: plain values, since they travel to the process
        peer: whether it is another program's; its process has the environment that its own users have, not gossamer's
    """

    def __init__(
        self,
        name: str,
        build: Callable[..., Call],
        *arguments: Any,
        peer: bool = False,
    ) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.calls = 0
        self.peak_bytes = 0
        self.failure = ""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        with mock.patch.dict(os.environ, environment.AS_USERS_HAVE_THEM if peer else {}):
            self._process.start()
        theirs.close()

    def turn(self, warm_up: bool = False) -> None:
        """Call it once.

        An error is stored as `failure`, and later turns are passed over. A subject that takes longer than `PATIENCE`
        after its first call is not called again: that is its figure then.
        """
        if self.failure or (self.seconds and self.seconds[0] > PATIENCE):
            return
        try:
            self._pipe.send("call")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            answer = "its process ended, out of memory perhaps"
        if isinstance(answer, str):
            self.failure = answer
            return
        seconds, self.peak_bytes = answer
        self.calls += 1
        if not warm_up or (self.calls > 1 and seconds > PATIENCE):
            self.seconds.append(seconds)

    @property
    def median(self) -> float:
        """The median seconds of a call."""
        return statistics.median(self.seconds)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, build: Callable[..., Call], arguments: Sequence[Any]) -> None:
    from gossamer.device import default_device, peak_memory, synchronize

    try:
        call = build(*arguments)
        while True:
            pipe.recv()
            began = time.perf_counter()
            call()
            synchronize(default_device())
            pipe.send((time.perf_counter() - began, peak_memory(default_device())))
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120])


def take_turns(contestants: Sequence[Callable[[int], bool]]) -> None:
    """Give contestants their turns in order, A B C A B C …, so that a machine that slows down slows all of them.

    Args:
        contestants: functions that take one turn, get its number from 0 on, and return whether there will be another
    """
    turn, remaining = 0, list(contestants)
    while remaining:
        remaining = [contestant for contestant in remaining if contestant(turn)]
        turn += 1
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def time_in_turns(subjects: Sequence[Subject], turns: int, warm_up: int = 1, waking: bool = False) -> None:
    """Time subjects in turns, and end their processes.

    Args:
        subjects: the subjects
        turns: turns of each
        warm_up: turns that come first and are not counted
        waking: whether each turn has a call before the one that counts: calls of a tenth of a second are slow at first
            where the caches are full of another's numbers and the threads asleep
    """

    def contestant(subject: Subject) -> Callable[[int], bool]:
        def call(turn: int) -> bool:
            if waking:
                subject.turn(warm_up=True)
            subject.turn(warm_up=turn < warm_up)
            return turn + 1 < warm_up + turns

        return call

    take_turns([contestant(subject) for subject in subjects])
    for subject in subjects:
        subject.close()


LARGE_PRODUCTS_FLOPS = 8 * 2.0 * 2048**3


def large_products() -> Call:
    """Return a call of square matrix products in float32 on all threads, with `LARGE_PRODUCTS_FLOPS` FLOPs."""
    a, b = (torch.randn(2048, 2048, device=_device()) for _ in range(2))
    out = torch.empty_like(a)

    def call() -> None:
        for _ in range(8):
            torch.mm(a, b, out=out)

    return call


def gemm_rate(dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Return the FLOP/s of a square matrix product on all threads: what a training step is measured against."""
    device = _device()
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2.0 * size**3 / seconds_of(lambda: torch.mm(a, b, out=out), device)


def _device() -> torch.device:
    from gossamer.device import default_device

    return default_device()


PEERS = {"transformers": "transformers", "llama.cpp": "llama_cpp_python"}  # as ratios name them, and their packages


def machine() -> dict[str, Any]:
    """Return what every record says of the machine, its rates included, and of what ran there."""
    from gossamer.device import device_key, device_name

    return {
        "device": device_name(_device()),
        "processor": device_key(_device()),
        "torch": torch.__version__,
        "peers": installed(PEERS),
        "date": time.strftime("%Y-%m-%d"),
        "gemm_gflops": gemm_rate() / 1e9,
        "copy_gbytes": copy_rate(_device()) / 1e9,
    }


def installed(packages: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, by the names they are given."""
    found: dict[str, str] = {}
    for name, package in packages.items():
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(package)
    return found


def describe(found: Mapping[str, Any]) -> str:
    """Return `machine()` in a line."""
    return (
        f"{found['device']}, torch {found['torch']}, {found['date']}: "
        f"GEMM {found['gemm_gflops']:.0f} GFLOP/s, copies {found['copy_gbytes']:.1f} GB/s"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table whose first column is left-aligned and whose other columns are right-aligned."""
    cells = [list(columns), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join([row[0].ljust(widths[0]), *numbers])} |"

    rule = [":" + "-" * (widths[0] - 1), *["-" * (width - 1) + ":" for width in widths[1:]]]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])
