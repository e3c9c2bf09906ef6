"""`gossamer chat`: a conversation in the terminal, with the same engine and templates as the service."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.defaults import generation_config, sampling_for_readers
from gossamer.serve.conversation import Conversation, LeftOut
from gossamer.serve.output import Content, Reasoning
from gossamer.serve.template import ChatTemplate

__all__ = ["chat", "talk"]

HELP = """\
/new             begin another conversation
/undo            take the last question and its answer back
/again           answer the last question anew
/system TEXT     set the system message and begin anew
/help            this list
/exit            leave; so does Ctrl-D. Ctrl-C stops an answer"""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
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
        sampling: keywords of ``SamplingParams``; what is None follows the checkpoint.

    Returns:
        The exit status: 2 where lines came from a file or a pipe and one of them was not answered.
    """
    from gossamer import hub
    from gossamer.infer.options import EngineOptions
    from gossamer.serve.build import EngineConfig, build_engine

    folder = hub.find_model(run)
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate(tokenizer)
    recommended, ends = generation_config(folder)
    engine, info = build_engine(folder, EngineConfig(device, EngineOptions(max_batch=1)))()
    chosen = sampling_for_readers(recommended, sampling)
    if template.is_default:
        print("(this model has no chat template: it continues a plain dialogue)", file=sys.stderr)
    system = None if system is None else _whole_characters(system)
    conversation = Conversation(engine, template, ends, info.max_model_len, max_tokens, chosen, system)
    answered = talk(conversation, _line_reader())
    return 0 if answered or sys.stdin.isatty() else 2


def talk(conversation: Conversation, read: Callable[[], str]) -> bool:
    """Read lines and answer them, until ``read`` raises EOFError or the user says /exit; whether all were answered."""
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
    conversation.messages.append({"role": "user", "content": question})
    coloured, thinking = sys.stdout.isatty(), False
    try:
        for event in conversation.answer():
            if isinstance(event, LeftOut):
                print(_note(event, conversation.longest), file=sys.stderr)
                continue
            if isinstance(event, Reasoning) != thinking:
                thinking = not thinking
                _write(("\n\n" if not thinking else "") + (DIM if thinking else PLAIN) * coloured)
            if isinstance(event, (Reasoning, Content)):
                # what a model writes must not steer the terminal
                _write(_CONTROL.sub("\ufffd", event.text))
    except UserError as error:
        conversation.undo()
        print(f"gossamer: {error}", file=sys.stderr)
        return False
    except KeyboardInterrupt:
        pass  # what has been said stays said
    _write(PLAIN * (coloured and thinking) + "\n")
    return True


def _note(left_out: LeftOut, longest: int) -> str:
    parts = {0: "the beginning of this line", 1: "its oldest turn"}
    part = parts.get(left_out.turns, f"its oldest {left_out.turns} turns")
    return f"(the conversation has outgrown the model's {longest} tokens: without {part} from here on)"


def _whole_characters(text: str) -> str:
    """Halves of surrogate pairs joined, and U+FFFD for a half alone, as a byte that is no UTF-8 arrives."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
