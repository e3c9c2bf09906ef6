"""`gossamer chat`: a conversation in the terminal, with the same engine and templates as the service.

A `Conversation` holds what has been said and keeps it within the context of the model. `talk` reads lines and prints
the answers.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossamer.data.chat.output_parser import Content, Event, OutputParser, Reasoning
from gossamer.data.chat.template import ChatTemplate, RenderedPrompt, TemplateRefusal
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.defaults import generation_config, sampling_for_readers
from gossamer.infer.request import Request, SamplingParams
from gossamer.serve.engine_worker import EngineLike
from gossamer.serve.replies import Reply

__all__ = ["Conversation", "Dropped", "chat", "talk"]

HELP = """\
/new             start another conversation
/undo            take back the last question and its answer
/again           answer the last question again
/system TEXT     set the system message and start another conversation
/help            show this list
/exit            leave, as Ctrl-D does; Ctrl-C stops an answer"""
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def chat(
    run: Path,
    system: str | None,
    max_tokens: int | None,
    sampling: dict[str, Any],
    device: str,
) -> int:
    """Talk with the model of a run or a Hugging Face directory until the user leaves.

    Args:
        run: the folder of the run, or the directory
        system: the system message; None for none
        max_tokens: tokens that an answer may have; None for a quarter of the context
        sampling: keywords of `SamplingParams`; what is None follows the checkpoint
        device: auto, cpu, cuda, cuda:1, npu …

    Returns:
        The exit status: 2 if the lines came from a file or a pipe and one of them was not answered.
    """
    from gossamer import hub
    from gossamer.infer.options import EngineOptions
    from gossamer.serve.engine_worker import EngineConfig, build_engine

    folder = hub.find_model(run)
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate(tokenizer)
    recommended, ends = generation_config(folder)
    engine, info = build_engine(folder, EngineConfig(device, EngineOptions(max_batch=1)))()
    sampling = sampling_for_readers(recommended, sampling)
    if template.is_default:
        print("(this model has no chat template: it continues a plain dialogue)", file=sys.stderr)
    system = None if system is None else _whole_characters(system)
    conversation = Conversation(engine, template, ends, info.max_model_len, max_tokens, sampling, system)
    answered = talk(conversation, _line_reader())
    return 0 if answered or sys.stdin.isatty() else 2


def talk(conversation: Conversation, read: Callable[[], str]) -> bool:
    """Read lines and answer them until `read` raises EOFError or the user types /exit.

    Returns:
        Whether all lines were answered.
    """
    answered = True
    while True:
        try:
            line = _whole_characters(read()).strip()
        except EOFError:
            return answered
        except KeyboardInterrupt:
            continue
        command, _, argument = line.partition(" ")
        match command:
            case "":
                continue
            case "/exit":
                return answered
            case "/help":
                print(HELP)
            case "/new":
                conversation.messages.clear()
            case "/system":
                conversation.system = argument.strip() or None
                conversation.messages.clear()
            case "/undo":
                if conversation.undo() is None:
                    print("there is nothing to take back", file=sys.stderr)
            case "/again":
                question = conversation.undo()
                if question is None:
                    print("there is nothing to answer", file=sys.stderr)
                else:
                    answered &= _ask(conversation, question)
            case _ if command.startswith("/") and not argument and command[1:].isalpha():
                print(f"no command {command}; /help lists them", file=sys.stderr)
            case _:
                answered &= _ask(conversation, line)


def _ask(conversation: Conversation, question: str) -> bool:
    """Print the answer to a question; returns whether there was one."""
    conversation.messages.append({"role": "user", "content": question})
    is_terminal, thinking = sys.stdout.isatty(), False
    try:
        for event in conversation.answer():
            if isinstance(event, Dropped):
                print(_dropped_note(event, conversation.max_model_len), file=sys.stderr)
                continue
            if isinstance(event, Reasoning) != thinking:
                thinking = not thinking
                _write(("\n\n" if not thinking else "") + (DIM if thinking else PLAIN) * is_terminal)
            if isinstance(event, (Reasoning, Content)):
                # what a model writes must not steer the terminal
                _write(_CONTROL_CHARACTERS.sub("\ufffd", event.text))
    except UserError as error:
        conversation.undo()
        print(f"gossamer: {error}", file=sys.stderr)
        return False
    except KeyboardInterrupt:
        pass  # what has been printed stays in the conversation
    _write(PLAIN * (is_terminal and thinking) + "\n")
    return True


def _dropped_note(dropped: Dropped, max_model_len: int) -> str:
    parts = {0: "the beginning of this line", 1: "its oldest turn"}
    part = parts.get(dropped.turns, f"its oldest {dropped.turns} turns")
    verb = "are" if dropped.turns > 1 else "is"
    return f"(the conversation has outgrown the model's {max_model_len} tokens; {part} {verb} left out from here on)"


def _whole_characters(text: str) -> str:
    """Join halves of surrogate pairs; a single half, which stands for a byte that is not UTF-8, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _line_reader() -> Callable[[], str]:
    """Return a reader of lines: at a terminal an editor with a history that only its user can read."""
    if not sys.stdin.isatty():
        return lambda: _piped_line(sys.stdin.readline())
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "gossamer"
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = state / "chat_history"
    file.touch(mode=0o600)
    session: PromptSession[str] = PromptSession(history=FileHistory(str(file)))
    return lambda: session.prompt("> ")


def _piped_line(line: str) -> str:
    if not line:
        raise EOFError
    return line


ANSWER_DIVISOR = 4
"""An answer may fill a quarter of the context, unless the user says otherwise: a model that finds no end would fill all
of it with a single answer."""


@dataclass(frozen=True)
class Dropped:
    """The event, before an answer, that the conversation has outgrown the context and lost its beginning.

    Attributes:
        turns: number of the oldest turns, questions with their answers, that were dropped; 0 if it was the beginning of
            the question
    """

    turns: int


@dataclass
class Conversation:
    """What has been said so far, kept within the context of the model, and the means to answer the last message.

    Attributes:
        engine: the engine, in this process
        template: turns messages into tokens
        ends: tokens that end an answer besides the tokenizer's end of text
        max_model_len: tokens that prompt and answer may have together
        max_tokens: tokens that an answer may have; None for a quarter of `max_model_len`
        sampling: keywords of `SamplingParams`, without `max_tokens`
        system: the system message; None for none
        messages: questions and answers so far
    """

    engine: EngineLike
    template: ChatTemplate
    ends: tuple[int, ...]
    max_model_len: int
    max_tokens: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def answer(self) -> Iterator[Event | Dropped]:
        """Answer the last message, event by event; the answer joins the conversation, even if it is stopped.

        The oldest turns are dropped if they leave no room for an answer.

        Raises:
            UserError: the last message alone does not fit into the context, or the engine fails.
        """
        num_turns = len(self._turns())
        prompt, is_whole = self._fit()
        dropped = num_turns - len(self._turns())
        if dropped or not is_whole:
            yield Dropped(dropped)
        params = SamplingParams(
            max_tokens=min(self.max_model_len - len(prompt.ids), self.max_tokens or self._default_max_tokens),
            stop=self.template.stop,
            stop_token_ids=self.ends,
            **self.sampling,
        )
        reply = Reply(OutputParser(prompt.thinking, self.template.thinks, None, self.template.is_default))
        self.engine.submit(Request("chat", prompt.ids, params, prompt.boundaries))
        try:
            while self.engine.has_work:
                for delta in self.engine.step():
                    yield from reply.add(delta)
                    if delta.finish_reason == "error":
                        raise UserError(f"the engine failed: {delta.error}")
        finally:
            self.engine.abort("chat")
            answer = {"role": "assistant", "content": reply.content}
            self.messages.append(answer | ({"reasoning_content": reply.reasoning} if reply.reasoning else {}))

    def undo(self) -> str | None:
        """Remove the last question and its answer, and return the question; None if there is none."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return str(message["content"])
        return None

    @property
    def _default_max_tokens(self) -> int:
        return max(1, self.max_model_len // ANSWER_DIVISOR)

    def _turns(self) -> list[int]:
        """The index of each question among the messages."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "user"]

    def _fit(self) -> tuple[RenderedPrompt, bool]:
        """Drop the oldest turns that leave no room for an answer.

        A plain dialogue is text like any other, so a base model gets the end of a question that is too long by itself.

        Returns:
            The prompt, and whether it holds all of the remaining messages.

        Raises:
            UserError: the last message alone does not fit.
        """
        room = self.max_model_len - min(self._default_max_tokens, self.max_tokens or self._default_max_tokens)
        for start in self._turns():
            prompt = self._render(self.messages[start:])
            if len(prompt.ids) <= room:
                del self.messages[:start]
                return prompt, True
        if not self.template.is_default:
            with_it = "" if self.system is None else "with the system message, which /system TEXT replaces, "
            raise UserError(
                f"{with_it}this is {len(prompt.ids)} tokens, and the model takes {room} beside its answer; shorten it"
            )
        del self.messages[:start]
        return self.template.end_of(prompt, room), False

    def _render(self, messages: list[dict[str, Any]]) -> RenderedPrompt:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        try:
            return self.template.render(system + messages)
        except TemplateRefusal as refusal:
            raise UserError(f"the chat template does not take this: {refusal}") from refusal
