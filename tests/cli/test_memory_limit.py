"""A process that was given too little memory to start, or comes upon the bound on its way."""

import subprocess
import sys

import pytest

from gossamer.cli import main, memory_limit
from stand_in import Calls

resource = pytest.importorskip("resource")


def limited(megabytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    bound = megabytes * 1_000_000
    return subprocess.run(
        [sys.executable, "-m", "gossamer.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (bound, bound)),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="no other system keeps such a bound")
def test_too_little_memory_to_start_is_told_in_a_line() -> None:
    for megabytes in (150, 350):
        done = limited(megabytes, "doctor")
        assert done.returncode == 2 and not done.stdout
        assert done.stderr.startswith(f"gossamer: memory is limited to {megabytes} MB (ulimit -v), which is too little")
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="no other system keeps such a bound")
def test_help_needs_no_trial() -> None:
    assert limited(150, "--help").returncode == 0


def test_nothing_is_tried_where_nothing_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(memory_limit.os, "fork", None)
    memory_limit.require_memory()


def test_the_narrowest_bound_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = {resource.RLIMIT_AS: 3_000_000_000, resource.RLIMIT_DATA: 2_000_000_000}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (bounds[kind], bounds[kind]))
    assert memory_limit.memory_limit() == "memory is limited to 2.0 GB (ulimit -d)"


def chained() -> Exception:
    error = SystemError("returned NULL without setting an exception")
    error.__context__ = MemoryError()
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "gossamer: out of memory: memory is limited to 1 MB (x); raise it\n"),
        (ImportError("libx.so: failed to map segment from shared object"), "gossamer: out of memory: "),
        (RuntimeError("std::bad_alloc"), "gossamer: out of memory: "),
        (chained(), "gossamer: out of memory: "),
        (RuntimeError("can't start new thread"), "gossamer: no more threads can be started: memory is limited"),
    ],
)
def test_memory_that_runs_out_on_the_way_names_the_bound(
    training: Calls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    line: str,
) -> None:
    training.error = error
    monkeypatch.setattr("gossamer.cli.command_line.memory_limit", lambda: "memory is limited to 1 MB (x)")
    assert main(["train"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1
