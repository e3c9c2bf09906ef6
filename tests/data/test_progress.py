"""Progress: silent, one line a stage, or a bar where somebody watches."""

import io
import sys

import pytest

from gossamer.data.progress import ProgressDisplay


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(enabled: bool) -> None:
    with ProgressDisplay(enabled).stage("reading", 10) as advance:
        advance(4)
        advance(6)


def test_one_line_a_stage_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(True)
    assert capsys.readouterr() == ("", "reading\n")


def test_a_long_stage_off_a_terminal_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 5.0, 20.0, 21.0, 40.0])
    monkeypatch.setattr("gossamer.data.progress.time.monotonic", lambda: next(clock))
    with ProgressDisplay(True).stage("reading", 10) as advance:
        for done in (1, 4, 1, 4):
            advance(done)
    assert capsys.readouterr().err == "reading\n  50%, 20 s left\n"


def test_nothing_is_shown_where_nothing_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    run(False)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    run(True)
    assert "reading" in terminal.getvalue() and "10/10 bytes" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_waiting_for_another_process_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressDisplay(False).waiting()
    ProgressDisplay(True).waiting()
    assert capsys.readouterr() == ("", "waiting for another process, which prepares the same text\n")
