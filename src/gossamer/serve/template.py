"""Messages to tokens: the checkpoint's chat template in a sandbox, or a plain dialogue for a model that has none."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.isolated import Exhausted, Isolated, Refused, Worker
from gossamer.serve.rendering import rendering

__all__ = ["ChatTemplate", "RenderedPrompt", "TemplateRefusal", "ToolFormat"]

ToolFormat = Literal["json", "xml"]
"""How the model writes a tool call: Qwen3-Next's JSON object, or Qwen3.5's ``<function=`` with ``<parameter=``."""

DEFAULT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role in ("system", "developer") -%}{{- message.content + "\\n\\n" -}}
{%- elif message.role == "user" -%}{{- "User: " + message.content + "\\n" -}}
{%- elif message.role == "assistant" -%}{{- "Assistant: " + message.content + "\\n" -}}
{%- else -%}{{- raise_exception("this model has no chat template, and without one no role " + message.role) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "Assistant:" -}}{%- endif -%}
"""
DEFAULT_STOP = ("\nUser:",)
"""What ends an answer in the plain dialogue: a base model goes on and speaks for the user too."""

_OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
SECONDS = 5.0
"""Of the processor's time, that a template may take for a prompt."""
MEMORY = 512 << 20
"""Bytes that it may take."""
AT_ONCE = 4
"""Prompts that are made at the same time."""
MANY = 1000
"""Prompts after which a worker makes room for a fresh one."""


class TemplateRefusal(ValueError):
    """The template does not take these messages, in its own words."""


@dataclass(frozen=True)
class RenderedPrompt:
    """Attributes:
    ids: the prompt's tokens
    boundaries: after how many tokens a message begins, in rising order: where a next request of the conversation may
        still agree with this one
    thinking: the prompt ends in an open ``<think>``
    """

    ids: tuple[int, ...]
    boundaries: tuple[int, ...]
    thinking: bool


class ChatTemplate:
    """Renders conversations for one tokenizer.

    A special token that a message spells out stays the characters it is spelt with: nobody ends a turn or begins one
    of another role by writing ``<|im_end|>`` into a message.

    Args:
        tokenizer: with its chat template, where the checkpoint brings one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        plain, with_tools = (tokenizer.chat_template_for(tools) or "" for tools in (False, True))
        self.is_default = not tokenizer.chat_templates
        self.stop: tuple[str, ...] = DEFAULT_STOP if self.is_default else ()
        # A plain dialogue begins as any text does, which need not be with the token that templates are told of.
        self._begin = tokenizer.decode(tokenizer.prefix_ids, special=True) if self.is_default else tokenizer.bos or ""
        self.thinks = "<think>" in plain + with_tools
        self.tools: ToolFormat | None = None
        if "tools" in with_tools:
            self.tools = "xml" if "<function=" in with_tools else "json" if "<tool_call>" in with_tools else None
        self._sources = plain + with_tools
        self._special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, self._special)) or r"(?!)")
        self._renderer = _Renderer(DEFAULT_TEMPLATE if self.is_default else plain, with_tools)
        try:
            self._turn = self._turn_token()
        except (Refused, Exhausted) as error:
            raise UserError(f"chat template of the checkpoint: {error}; mend chat_template.jinja") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """The prompt that asks for the next message of an assistant.

        Args:
            messages: as chat/completions takes them, ``content`` being text and ``arguments`` JSON objects.
            tools: as chat/completions takes them.
            extra: variables for the template besides these, such as ``enable_thinking``.

        Raises:
            TemplateRefusal: the template takes no such messages, or fails.
            UserError: a character that the tokenizer does not know.
        """
        variables: list[Any] = [messages, tools, extra or {}]
        try:
            guard = self._guard(variables) if any(map(self._spelt.search, _texts(variables))) else ""
            if guard:
                variables = self._guarded(variables, guard)
        except RecursionError as error:
            raise TemplateRefusal("nested too deeply") from error
        try:
            text = self._text(variables[0], variables[1], variables[2], prompt=True)
        except (Refused, Exhausted) as error:
            raise TemplateRefusal(str(error)) from error
        ids: list[int] = []
        for index, part in enumerate(self._apart(text, guard)):
            if part:
                ids += self._tokenizer.encode(part, special=index % 2 == 0)
        begins = tuple(place for place, token in enumerate(ids) if place and token == self._turn)
        return RenderedPrompt(tuple(ids), begins, _OPEN_THOUGHT.search(text) is not None)

    def end_of(self, prompt: RenderedPrompt, count: int) -> RenderedPrompt:
        """The last ``count`` tokens of a plain dialogue, the one that texts begin with in front as in training."""
        bos = self._tokenizer.bos_id
        begin = prompt.ids[:1] if prompt.ids[0] == bos else ()
        return RenderedPrompt((*begin, *prompt.ids[len(prompt.ids) - count + len(begin) :]), (), False)

    def _text(
        self,
        messages: Any,
        tools: Any,
        extra: Mapping[str, Any],
        prompt: bool,
    ) -> str:
        known = {
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": prompt,
            "bos_token": self._begin,
            "eos_token": self._tokenizer.eot,
        }
        if taken := known.keys() & extra.keys():
            raise TemplateRefusal(f"{min(taken)} is set by the request itself")
        return self._renderer.text(bool(tools), {**extra, **known})

    def _turn_token(self) -> int | None:
        """The special token that begins a message, if the template has one: its prompt for an answer begins so.

        Raises:
            Refused: it is no template.
            Exhausted: it takes too much for the shortest of conversations.
        """
        asked = [{"role": "user", "content": "a"}]
        self._renderer.check()
        try:
            bare, prompted = (self._text(asked, None, {}, prompt) for prompt in (False, True))
        except Refused:
            return None
        begin = prompted[len(bare) :] if prompted.startswith(bare) else ""
        token = next((token for token in self._special if begin.startswith(token)), None)
        return None if token is None else self._tokenizer.special_tokens[token]

    # A special token that a message spells out must not become that token. So the template gets it with a mark behind
    # each of its characters, one that occurs nowhere else, and afterwards what carries the marks is encoded as text.

    def _guard(self, variables: Any) -> str:
        """A mark that occurs neither in the variables nor in the templates, be it as itself or as JSON escapes it."""
        taken = json.dumps(variables, ensure_ascii=False) + self._sources
        return next(mark for mark in _marks() if mark not in taken and not any(map(taken.__contains__, _escapes(mark))))

    def _guarded(self, value: Any, guard: str) -> Any:
        """A copy with marks in every special token in any text of it."""
        if isinstance(value, str):
            return self._spelt.sub(lambda found: "".join(letter + guard for letter in found.group()), value)
        if isinstance(value, Mapping):
            return {self._guarded(key, guard): self._guarded(item, guard) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self._guarded(item, guard) for item in value]
        return value

    def _apart(self, text: str, guard: str) -> list[str]:
        """The text in turn as the template wrote it, and special tokens that are to stay text; without marks."""
        if not guard:
            return [text]
        for escape in _escapes(guard):
            text = text.replace(escape, guard)
        marked = ("".join(re.escape(letter + guard) for letter in token) for token in self._special)
        return [part.replace(guard, "") for part in re.split(f"({'|'.join(marked)})", text)]


def _texts(value: Any) -> Iterator[str]:
    """All texts within a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _marks() -> Iterator[str]:
    """Characters that no text which people exchange holds, then pairs of them: more than a text can hold."""
    letters = [chr(code) for code in (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))]
    return itertools.chain(letters, map("".join, itertools.permutations(letters, 2)))


def _escapes(mark: str) -> Iterable[str]:
    """How JSON may spell a mark in ASCII."""
    return (form % tuple(map(ord, mark)) for form in ("\\u%04x" * len(mark), "\\u%04X" * len(mark)))


class _Renderer:
    """Renders templates in processes that may be given up. May be used by several threads.

    Args:
        plain: the source of the template for conversations without tools.
        with_tools: of the one for conversations with tools.
    """

    def __init__(self, plain: str, with_tools: str) -> None:
        self._differ = plain != with_tools and bool(with_tools)
        sources = {"plain": plain} | ({"with tools": with_tools} if self._differ else {})
        self._sources = json.dumps({"templates": sources}).encode()
        self._idle: list[Worker] = []
        self._places = threading.BoundedSemaphore(AT_ONCE)

    def check(self) -> None:
        """Whether these are templates; raises as ``text`` does."""
        self._idle.append(self._fresh())

    def text(self, tools: bool, variables: Mapping[str, Any]) -> str:
        """What the template makes of its variables, the one for tools or the other.

        Raises:
            Refused: it does not take them, or fails.
            Exhausted: it takes too much time or memory.
        """
        try:
            name = "with tools" if tools and self._differ else "plain"
            asked = json.dumps({"template": name, "variables": variables}).encode()
        except RecursionError as error:
            raise Refused("nested too deeply") from error
        with self._places:
            try:
                worker = self._idle.pop()
            except IndexError:
                worker = self._fresh()
            try:
                text = worker.ask(asked, SECONDS)
            except Exhausted:
                worker.close()
                raise
            except Refused:
                self._idle.append(worker)
                raise
            if worker.num_questions < MANY:
                self._idle.append(worker)
            else:
                worker.close()
        return text.decode(errors="surrogatepass")

    def _fresh(self) -> Worker:
        worker = _processes().worker()
        worker.ask(self._sources, SECONDS)
        return worker


@cache
def _processes() -> Isolated:
    return Isolated(rendering, memory=MEMORY)
