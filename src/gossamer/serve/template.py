"""Messages to tokens: the checkpoint's chat template in a sandbox, or a plain dialogue for a model that has none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError

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
# Stands for a special token that a message spells out. Noncharacters: no text that people exchange holds them.
_MARK = re.compile("\ufdd0(\\d+)\ufdd1")


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
        source = tokenizer.chat_template
        self.is_default = source is None
        self.stop: tuple[str, ...] = DEFAULT_STOP if self.is_default else ()
        # A plain dialogue begins as any text does, which need not be with the token that templates are told of.
        self._begin = tokenizer.decode(tokenizer.prefix_ids, special=True) if self.is_default else tokenizer.bos or ""
        self.thinks = source is not None and "<think>" in source
        self.tools: ToolFormat | None = None
        if source is not None and "tools" in source:
            self.tools = "xml" if "<function=" in source else "json" if "<tool_call>" in source else None
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source if source is not None else DEFAULT_TEMPLATE)
        except TemplateError as error:
            raise UserError(f"chat template of the checkpoint: {error}; mend chat_template.jinja") from error
        self._special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, [*self._special, "\ufdd0"])))
        self._turn = self._turn_token()

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
        try:
            guarded = self._guarded(messages), self._guarded(tools)
        except RecursionError as error:
            raise TemplateRefusal("nested too deeply") from error
        text = self._text(*guarded, extra or {}, prompt=True)
        ids: list[int] = []
        for index, part in enumerate(_MARK.split(text)):
            if index % 2:
                ids += self._tokenizer.encode(self._unmarked(int(part)))
            elif part:
                ids += self._tokenizer.encode(part, special=True)
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
        try:
            return self._template.render(**extra, **known)
        except TemplateRefusal:
            raise
        except RecursionError as error:
            raise TemplateRefusal("nested too deeply") from error
        except Exception as error:  # a template is a program: with messages it was not written for, it fails anyhow
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from error

    def _turn_token(self) -> int | None:
        """The special token that begins a message, if the template has one: its prompt for an answer begins so."""
        asked = [{"role": "user", "content": "a"}]
        try:
            bare, prompted = (self._text(asked, None, {}, prompt) for prompt in (False, True))
        except TemplateRefusal:
            return None
        begin = prompted[len(bare) :] if prompted.startswith(bare) else ""
        token = next((token for token in self._special if begin.startswith(token)), None)
        return None if token is None else self._tokenizer.special_tokens[token]

    def _guarded(self, value: Any) -> Any:
        """A copy with a mark in place of every special token in any text of it."""
        if isinstance(value, str):
            return self._spelt.sub(self._mark, value)
        if isinstance(value, Mapping):
            return {self._guarded(key): self._guarded(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self._guarded(item) for item in value]
        return value

    def _mark(self, found: re.Match[str]) -> str:
        text = found.group()
        return f"\ufdd0{self._special.index(text) if text in self._special else len(self._special)}\ufdd1"

    def _unmarked(self, index: int) -> str:
        return [*self._special, "\ufdd0"][index]


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own filter escapes for HTML; a model was trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    raise TemplateRefusal(message)
