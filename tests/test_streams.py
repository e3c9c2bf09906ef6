"""Standard streams that are closed, full, read by nobody, or take ASCII alone."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import UserError
from gossamer.streams import ReaderGone, outliving_readers, usable_streams


def test_what_cannot_be_written_to_standard_error_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        with outliving_readers(), outliving_readers():
            print("one", file=sys.stderr, flush=True)
            assert os.read(reading, 100) == b"one\n"
            os.close(reading)
            print("two", file=sys.stderr, flush=True)
            os.write(sys.stderr.fileno(), b"three")  # as a library below Python does
            assert not sys.stderr.isatty()
        assert sys.stderr is pipe


def test_an_answer_that_nobody_reads_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with usable_streams(), pytest.raises(ReaderGone):
            print("one", flush=True)
        assert sys.stdout is pipe


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_answer_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with usable_streams(), pytest.raises(UserError, match=r"^standard output cannot be written to \(No space left"):
            print("one", flush=True)


def written(text: str, encoding: str, errors: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    raw = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, errors))
        with usable_streams():
            print(text, end="")
        return raw.getvalue()


@pytest.mark.parametrize("errors", ["strict", "surrogateescape", "backslashreplace"])
def test_ascii_alone_spells_what_it_does_not_have(errors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert written("3×10 – ─── “日”", "ascii", errors, monkeypatch) == b'3x10 - --- "\\u65e5"'


def test_what_the_user_says_of_encoding_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written("3×4", "ascii", "replace", monkeypatch) == b"3?4"


def test_a_name_that_is_no_text_is_written_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(os.fsdecode(b"runs/\xff\xe9"), "utf-8", "strict", monkeypatch) == b"runs/\xff\xe9"


@given(st.text(st.characters(categories=None)), st.sampled_from(["ascii", "utf-8", "latin-1", "cp1252"]))
def test_any_text_can_be_printed(text: str, encoding: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        written(text, encoding, "strict", patch)


CLOSED = """
import os, sys, tempfile
for number in map(int, sys.argv[1]): os.close(number)
sys.stdin, sys.stdout, sys.stderr = (None if str(n) in sys.argv[1] else s for n, s in enumerate((sys.stdin, sys.stdout, sys.stderr)))
from gossamer.cli import main
status = main(sys.argv[2:])
file = tempfile.TemporaryFile()
os._exit(status if file.fileno() > 2 else 99)
"""  # noqa: E501


@pytest.mark.parametrize(
    ("closed", "arguments", "status"),
    [
        ("1", ["--version"], 2),
        ("2", ["--version"], 0),
        ("012", ["--version"], 2),
        ("12", ["sample", "nowhere"], 2),
        ("12", ["sample", "--help"], 0),
    ],
)
def test_closed_streams(closed: str, arguments: list[str], status: int) -> None:
    done = subprocess.run([sys.executable, "-c", CLOSED, closed, *arguments], capture_output=True, timeout=300)
    assert done.returncode == status
    assert done.stderr == (b"" if "2" in closed else b"gossamer: standard output is closed: the answer went nowhere\n")
