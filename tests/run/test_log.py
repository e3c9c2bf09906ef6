"""What a person sees while a run trains."""

import io
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.run.log import Display, fitting
from gossamer.run.stop import Progress
from gossamer.train.config import TrainingConfig


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_shows_what_is_new_since_the_one_before(capsys, monkeypatch):
    display = Display(TrainingConfig(steps=100))
    display.step(Progress(10, 0, 1.0, 0.1), loss=4.0, speed=1234.0, cost="MFU 10%")
    assert capsys.readouterr().err == "", "not yet time for a line"
    display.step(Progress(20, 0, 2.0, 0.2), loss=3.0)
    display.step(Progress(20, 0, 2.0, 0.2), validation=3.5)
    assert (
        capsys.readouterr().err == "step 20/100  loss 3.000  validation 3.500  1,234 tokens/s  MFU 10%  left 0:00:08\n"
    )
    display.step(Progress(30, 0, 3.0, 0.3), validation=3.25)
    assert capsys.readouterr().err == "step 30/100  validation 3.250  left 0:00:07\n"
    monkeypatch.setattr(display, "_is_time", lambda: True)
    display.step(Progress(40, 0, 4.0, 0.4), loss=2.0)
    assert capsys.readouterr().err == "step 40/100  loss 2.000  left 0:00:06\n"


COST = "MFU 45%  12.3 TFLOP  0.12 of 1.50 USD"


@pytest.mark.parametrize("width", range(40, 201))
def test_the_line_fits_whatever_the_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    display = Display(TrainingConfig(steps=12_000))
    display.step(Progress(1_234, 0, 2_000.0, 0.1), loss=3.456, validation=3.5, speed=12_345.6, cost=COST)
    with display.console.capture() as captured:
        display.console.print(display._bar.get_renderable())
    text = re.sub(r"\x1b\[[\d;]*m", "", captured.get())
    lines = text.splitlines()
    assert len(lines) == 1 and len(lines[0].rstrip()) < width
    assert lines[0].startswith("step 1234/12000") and lines[0].rstrip().endswith("left 5:00:00")
    assert ("loss 3.456" in text) == (width >= 42)
    if width >= 80:
        assert "validation 3.500" in text and "12,346 tokens/s" in text
    if width >= 140:
        assert "0.12 of 1.50 USD" in text and "0:00:0" in text and "━" in text


@given(
    st.integers(1, 250),
    st.text("step 0/", min_size=1, max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=20), max_size=6),
)
def test_numbers_are_left_out_from_the_end(width: int, step: str, numbers: list[str]) -> None:
    begin, bar, rest = fitting(width, step, numbers, "0:01:00", "0:12:00")
    assert begin == step and rest.endswith("left 0:12:00")
    *shown, _ = rest.split("  ")
    assert numbers[: len(shown)] == shown or [*numbers, "0:01:00"] == shown
    whole = len(begin) + len(rest) + 2 + (bar + 2 if bar else 0)
    assert whole <= width or (not bar and not shown)
