"""gossamer chat: what is typed, what is answered, what is remembered."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_double import EngineDouble, write_tokenizer
from gossamer.data.tokenizer import Tokenizer
from gossamer.serve.conversation import Conversation
from gossamer.serve.template import ChatTemplate
from gossamer.serve.terminal import talk


@pytest.fixture
def conversation(folder: Path) -> Conversation:
    tokenizer = Tokenizer.load(folder)
    return Conversation(EngineDouble(tokenizer, 1), ChatTemplate(tokenizer), (), longest=300)


def typing(conversation: Conversation, *lines: str | type[BaseException]) -> bool:
    left: Iterator[str | type[BaseException]] = iter(lines)

    def read() -> str:
        line = next(left, EOFError)
        if not isinstance(line, str):
            raise line
        return line

    return talk(conversation, read)


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


def test_questions_are_answered_and_remembered(conversation, capsys):
    typing(conversation, "SAY Grüße", "", KeyboardInterrupt, "SAY b")
    assert capsys.readouterr().out == "Grüße\nb\n"
    assert said(conversation) == [
        ("user", "SAY Grüße"),
        ("assistant", "Grüße"),
        ("user", "SAY b"),
        ("assistant", "b"),
    ]


def test_commands(conversation, capsys):
    typing(
        conversation,
        "SAY a",
        "/again",
        "SAY b",
        "/undo",
        "/system SAY nothing",
        "/undo",
        "/again",
        "SAY c",
        "/exit",
        "SAY d",
    )
    out, err = capsys.readouterr()
    assert out == "a\na\nb\nc\n"
    assert err.splitlines() == ["there is nothing to take back", "there is nothing to answer"]
    assert said(conversation) == [("user", "SAY c"), ("assistant", "c")] and conversation.system == "SAY nothing"
    typing(conversation, "/new", "/help", "/nwe")
    out, err = capsys.readouterr()
    assert not conversation.messages and "/undo" in out and err == "no command /nwe; /help lists them\n"


def test_a_thought_comes_apart(conversation, capsys):
    typing(conversation, "SAY <think>\nhm\n</think>\n\nYes.", "SAY b")
    assert capsys.readouterr().out == "hm\n\nYes.\nb\n"
    assert conversation.messages[1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}


def test_what_a_model_writes_does_not_steer_the_terminal(conversation, capsys):
    typing(conversation, "SAY a\x1b]0;title\x07\x1b[2Jb\tc\nd")
    assert capsys.readouterr().out == "a\ufffd]0;title\ufffd\ufffd[2Jb\tc\nd\n"


def test_ctrl_c_stops_an_answer_which_stays_as_far_as_it_came(conversation, capsys, monkeypatch):
    step, left = conversation.engine.step, iter(range(3))

    def interrupted():
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(conversation.engine, "step", interrupted)
    typing(conversation, "SAY abcdef")
    assert capsys.readouterr().out == "abc\n" and said(conversation)[1] == ("assistant", "abc")
    assert not conversation.engine.has_work


def test_a_line_that_is_too_long_says_so_and_is_dropped(conversation, capsys):
    assert not typing(conversation, "SAY a", "x" * 300)
    out, err = capsys.readouterr()
    assert out == "a\n" and err.startswith("gossamer: this is ") and err.endswith("; shorten it\n")
    assert said(conversation) == [("user", "SAY a"), ("assistant", "a")]


def test_a_conversation_that_outgrows_the_context_goes_on_with_a_note(conversation, capsys):
    assert typing(conversation, *["go on"] * 6)
    out, err = capsys.readouterr()
    assert out.count("\n") == 6
    note = "(the conversation has outgrown the model's 300 tokens: without its oldest turn from here on)"
    assert err.splitlines() and set(err.splitlines()) == {note}


def test_half_a_surrogate_pair_is_read_as_what_it_is_a_damaged_character(conversation, capsys):
    assert typing(conversation, "SAY a\udced b \ud83d\ude00")
    assert capsys.readouterr().out == "a\ufffd b \U0001f600\n"


def test_a_failing_engine_is_told_of(conversation, capsys):
    typing(conversation, "FAIL", "SAY a")
    out, err = capsys.readouterr()
    assert "the engine failed: this prompt asks to fail" in err and out == "a\n"
    assert said(conversation) == [("user", "SAY a"), ("assistant", "a")]


CHAT = """
import sys
from pathlib import Path
import engine_double
import gossamer.serve.build
from gossamer.cli import main
gossamer.serve.build.build_engine = lambda folder, config: engine_double.build(folder)
sys.exit(main(["chat", sys.argv[1], "--max_tokens", "9"]))
"""


def run(folder: Path, tmp_path: Path, **streams: object) -> subprocess.Popen[bytes]:
    (folder / "config.json").write_text("{}")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_STATE_HOME": str(tmp_path),
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    return subprocess.Popen([sys.executable, "-c", CHAT, str(folder)], env=environment, **streams)  # type: ignore[call-overload]


def test_lines_may_come_through_a_pipe(tmp_path):
    process = run(
        write_tokenizer(tmp_path / "model", None), tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(b"SAY a\nUser: b", timeout=60)
    assert (process.returncode, b"no chat template" in err) == (0, True)
    assert out.startswith(b"a\n")


def test_a_line_of_a_pipe_that_gets_no_answer_shows_in_the_exit_status(tmp_path):
    process = run(
        write_tokenizer(tmp_path / "model"), tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(b"FAIL\nSAY \xffa\n", timeout=60)
    assert (process.returncode, out) == (2, "\ufffda\n".encode()) and err.startswith(b"gossamer: the engine failed")


def test_at_a_terminal_lines_are_edited_and_kept_for_their_user_alone(tmp_path):
    ours, theirs = pty.openpty()
    process = run(write_tokenizer(tmp_path / "model"), tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + 20
        while text not in shown:
            assert select.select([ours], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(ours, 1000)
        shown = shown.split(text, 1)[1]

    until(b">")
    os.write(ours, b"hx\x7fi\r")
    until(b"word word\r\n")
    until(b">")
    os.write(ours, b"\x04")
    assert process.wait(30) == 0
    os.close(ours)
    history = tmp_path / "gossamer" / "chat_history"
    assert "+hi" in history.read_text() and history.stat().st_mode & 0o077 == 0
