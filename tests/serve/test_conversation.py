"""A conversation that outgrows the model's context goes on, without what was said first."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_double import EngineDouble, write_tokenizer
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.request import Request
from gossamer.serve.conversation import Conversation, LeftOut
from gossamer.serve.template import ChatTemplate


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
    return Conversation(Listening(tokenizer), ChatTemplate(tokenizer), (), longest=200, **more)  # type: ignore[arg-type]


def ask(conversation: Conversation, question: str) -> list[int]:
    """Turns that each answer left out, of one question."""
    conversation.messages.append({"role": "user", "content": question})
    return [event.turns for event in conversation.answer() if isinstance(event, LeftOut)]


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
    conversation.longest = longest
    for length in lengths:
        ask(conversation, "x" * length)
        request = conversation.engine.asked[-1]
        assert 1 <= request.sampling.max_tokens <= (max_tokens or longest // 4)
        assert len(request.prompt) + request.sampling.max_tokens <= longest
        assert conversation.messages[-1]["role"] == "assistant"
