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
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_double import EngineDouble, write_tokenizer
from gossamer.data.chat.template import ChatTemplate
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.request import Request
from gossamer.serve.terminal import Conversation, Dropped, talk


@pytest.fixture
def conversation(folder: Path) -> Conversation:
    tokenizer = Tokenizer.load(folder)
    return Conversation(EngineDouble(tokenizer, 1), ChatTemplate(tokenizer), (), max_model_len=300)


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


def test_commands_change_what_was_said(conversation, capsys):
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
    note = "(the conversation has outgrown the model's 300 tokens; its oldest turn is left out from here on)"
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
import gossamer.serve.engine_worker
from gossamer.cli import main
gossamer.serve.engine_worker.build_engine = lambda folder, config: engine_double.build(folder)
sys.exit(main(["chat", sys.argv[1], "--max-tokens", "9"]))
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
    out, err = process.communicate(b"SAY a\nUser: b", timeout=300)
    assert (process.returncode, b"no chat template" in err) == (0, True)
    assert out.startswith(b"a\n")


def test_a_line_of_a_pipe_that_gets_no_answer_shows_in_the_exit_status(tmp_path):
    process = run(
        write_tokenizer(tmp_path / "model"), tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(b"FAIL\nSAY \xffa\n", timeout=300)
    assert (process.returncode, out) == (2, "\ufffda\n".encode()) and err.startswith(b"gossamer: the engine failed")


def test_at_a_terminal_lines_are_edited_and_kept_for_their_user_alone(tmp_path):
    ours, theirs = pty.openpty()
    process = run(write_tokenizer(tmp_path / "model"), tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + 120
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


# A conversation that outgrows the context of the model goes on, without what was said first.


class Listening(EngineDouble):
    """The double, which keeps what it was asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, 1)
        self.asked: list[Request] = []

    def submit(self, request: Request) -> None:
        self.asked.append(request)
        super().submit(request)


@pytest.fixture(scope="module")
def plain_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("plain"), None))


def beginning(tokenizer: Tokenizer, **more: object) -> Conversation:
    return Conversation(Listening(tokenizer), ChatTemplate(tokenizer), (), max_model_len=200, **more)  # type: ignore[arg-type]


def ask(conversation: Conversation, question: str) -> list[int]:
    """Turns that each answer left out, of one question."""
    conversation.messages.append({"role": "user", "content": question})
    return [event.turns for event in conversation.answer() if isinstance(event, Dropped)]


def questions(conversation: Conversation) -> list[str]:
    return [message["content"] for message in conversation.messages if message["role"] == "user"]


def test_an_answer_without_end_takes_a_quarter(folder: Path) -> None:
    conversation = beginning(Tokenizer.load(folder))
    assert [ask(conversation, "go on") for _ in range(6)] == [[], [], [1], [1], [1], [1]]
    assert {request.sampling.max_tokens for request in conversation.engine.asked} == {50}
    assert len(questions(conversation)) == 2


def test_the_user_may_ask_for_less_and_for_what_is_there(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    short, long = beginning(tokenizer, max_tokens=5), beginning(tokenizer, max_tokens=500)
    ask(short, "x" * 150)
    ask(long, "hi")
    assert short.engine.asked[0].sampling.max_tokens == 5
    prompt, params = long.engine.asked[0].prompt, long.engine.asked[0].sampling
    assert len(prompt) + params.max_tokens == 200 and params.max_tokens > 150


def test_the_oldest_turns_go_and_the_system_message_stays(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    conversation = beginning(tokenizer, system="be brief")
    told = [ask(conversation, f"{number} SAY ok") for number in range(8)]
    assert told[:2] == [[], []] and any(told)
    last = tokenizer.decode(conversation.engine.asked[-1].prompt)
    assert "be brief" in last and "7 SAY ok" in last and "0 SAY ok" not in last


def test_a_line_that_is_too_long_alone_changes_nothing(folder: Path) -> None:
    conversation = beginning(Tokenizer.load(folder))
    ask(conversation, "SAY a")
    before = list(conversation.messages)
    with pytest.raises(UserError, match=r"^this is 2\d\d tokens, and the model takes 150 beside its answer"):
        ask(conversation, "x" * 200)
    assert conversation.undo() == "x" * 200 and conversation.messages == before
    conversation.system = "x" * 200
    with pytest.raises(UserError, match=r"^with the system message, which /system TEXT replaces, this is"):
        ask(conversation, "SAY a")


def test_of_a_plain_dialogue_the_newest_text_is_kept(plain_tokenizer: Tokenizer) -> None:
    conversation = beginning(plain_tokenizer)
    assert ask(conversation, "SAY a") == [] and ask(conversation, "old " * 60 + "new") == [1]
    prompt = conversation.engine.asked[-1].prompt
    assert len(prompt) == 150 and prompt[0] == plain_tokenizer.bos_id
    assert plain_tokenizer.decode(prompt).endswith("old new\nAssistant:")
    assert ask(conversation, "SAY on") == [1] and conversation.messages[-1]["content"].startswith("on")
    alone = beginning(plain_tokenizer)
    assert ask(alone, "old " * 60) == [0]


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    max_tokens=st.none() | st.integers(1, 400),
    longest=st.integers(40, 300),
)
def test_there_is_no_dead_end(
    plain_tokenizer: Tokenizer, lengths: list[int], max_tokens: int | None, longest: int
) -> None:
    conversation = beginning(plain_tokenizer, max_tokens=max_tokens)
    conversation.max_model_len = longest
    for length in lengths:
        ask(conversation, "x" * length)
        request = conversation.engine.asked[-1]
        assert 1 <= request.sampling.max_tokens <= (max_tokens or longest // 4)
        assert len(request.prompt) + request.sampling.max_tokens <= longest
        assert conversation.messages[-1]["role"] == "assistant"
