"""`gossamer chat`: a conversation in the terminal, with the same engine and templates as the service."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.request import Request, SamplingParams
from gossamer.serve.output import Content, Event, OutputParser, Reasoning
from gossamer.serve.template import ChatTemplate, TemplateRefusal
from gossamer.serve.turn import Reply
from gossamer.serve.worker import Engine

__all__ = ["Conversation", "chat", "talk"]

HELP = """\
/new             begin another conversation
/undo            take the last question and its answer back
/again           answer the last question anew
/system TEXT     set the system message and begin anew
/help            this list
/exit            leave; so does Ctrl-D. Ctrl-C stops an answer"""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass
class Conversation:
    """Messages so far, and the means to answer the last one.

    Attributes:
        ends: tokens that end an answer beside the tokenizer's end of text
        sampling: keywords of ``SamplingParams``, without ``max_tokens``
        longest: prompt and answer at most (tokens)
        max_tokens: of an answer at most; None: what is left
    """

    engine: Engine
    template: ChatTemplate
    ends: tuple[int, ...]
    longest: int
    max_tokens: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def answer(self) -> Iterator[Event]:
        """Answer the last message, piece by piece; what has been said joins the conversation, stopped or not.

        Raises:
            UserError: the conversation does not fit the model.
        """
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        try:
            prompt = self.template.render(first + self.messages)
        except TemplateRefusal as refusal:
            raise UserError(f"the chat template does not take this: {refusal}") from refusal
        room = self.longest - len(prompt.ids)
        if room < 1:
            raise UserError(
                f"the conversation has {len(prompt.ids)} tokens, the model takes {self.longest}; /new begins another"
            )
        params = SamplingParams(
            max_tokens=min(room, self.max_tokens or room),
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
            said = {"role": "assistant", "content": reply.content}
            self.messages.append(said | ({"reasoning_content": reply.reasoning} if reply.reasoning else {}))

    def undo(self) -> str | None:
        """Take back the last question and its answer; return the question."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return str(message["content"])
        return None


def chat(
    run: Path,
    system: str | None,
    max_tokens: int | None,
    sampling: dict[str, Any],
    device: str,
) -> None:
    """Talk with the model of a run or a Hugging Face directory until the user leaves.

    Args:
        sampling: keywords of ``SamplingParams``; what is None follows the checkpoint.
    """
    from gossamer import hub
    from gossamer.infer.options import EngineOptions
    from gossamer.serve.build import EngineConfig, build_engine
    from gossamer.serve.service import generation_config

    folder = hub.find_model(run)
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate(tokenizer)
    defaults, ends = generation_config(folder)
    engine, info = build_engine(folder, EngineConfig(device, EngineOptions(max_batch=1)))()
    chosen = defaults | {name: value for name, value in sampling.items() if value is not None}
    if template.is_default:
        print("(this model has no chat template: it continues a plain dialogue)", file=sys.stderr)
    talk(Conversation(engine, template, ends, info.max_model_len, max_tokens, chosen, system), _line_reader())


def talk(conversation: Conversation, read: Callable[[], str]) -> None:
    """Read lines and answer them, until ``read`` raises EOFError or the user says /exit."""
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            continue
        command, _, argument = line.partition(" ")
        match command:
            case "":
                continue
            case "/exit":
                return
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
                    _ask(conversation, question)
            case _ if command.startswith("/") and not argument and command[1:].isalpha():
                print(f"no command {command}; /help lists them", file=sys.stderr)
            case _:
                _ask(conversation, line)


def _ask(conversation: Conversation, question: str) -> None:
    conversation.messages.append({"role": "user", "content": question})
    coloured, thinking = sys.stdout.isatty(), False
    try:
        for event in conversation.answer():
            if isinstance(event, Reasoning) != thinking:
                thinking = not thinking
                _write(("\n\n" if not thinking else "") + (DIM if thinking else PLAIN) * coloured)
            if isinstance(event, (Reasoning, Content)):
                # what a model writes must not steer the terminal
                _write(_CONTROL.sub("\ufffd", event.text))
    except UserError as error:
        conversation.undo()
        print(f"gossamer: {error}", file=sys.stderr)
        return
    except KeyboardInterrupt:
        pass  # what has been said stays said
    _write(PLAIN * (coloured and thinking) + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _line_reader() -> Callable[[], str]:
    """At a terminal an editor with the history of earlier lines, kept for this user alone; else plain lines."""
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
