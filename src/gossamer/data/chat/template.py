"""From messages to tokens: by the chat template of the checkpoint in a sandbox, or as a plain dialogue without one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gossamer.data.chat.renderer import Renderer
from gossamer.data.chat.special_marks import SpecialMarks
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.isolated import RefusedError, WorkerFailedError

__all__ = ["ChatTemplate", "Conversation", "RenderedPrompt", "TemplateRefusal", "ToolFormat"]

ToolFormat = Literal["json", "xml"]
"""How the model writes a tool call: as a JSON object (Qwen3-Next), or as `<function=` with `<parameter=` (Qwen3.5)."""

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
"""What ends an answer in the plain dialogue: a base model would continue and speak for the user, too."""

_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_OPEN_REASONING = re.compile(r"<think>\s*\Z")


class TemplateRefusal(ValueError):
    """The template refuses these messages; the text is its own."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt in tokens.

    Attributes:
        ids: the tokens
        boundaries: after how many tokens a message begins, in rising order: up to there the next request of the
            conversation may still agree with this one
        thinking: whether the prompt ends in an open `<think>`
    """

    ids: tuple[int, ...]
    boundaries: tuple[int, ...]
    thinking: bool


class ChatTemplate:
    """Renders conversations for one tokenizer.

    A special token that a message spells out remains the characters that it is spelled with. So nobody ends a turn, or
    begins one of another role, by writing `<|im_end|>` into a message. The tags of reasoning and tool calls are those
    tags in a message, too, whether the checkpoint registers them as special tokens or as ordinary ones.

    Args:
        tokenizer: the tokenizer, with its chat template if the checkpoint has one

    Attributes:
        is_default: whether the checkpoint has no chat template, and messages become a plain dialogue
        stop: texts that end an answer
        thinks: whether the model may begin an answer with `<think>`
        tools: how the model writes tool calls; None if the template cannot offer tools
        reads_thinking: whether the template knows the variable `enable_thinking`
        marks_answers: whether the template says with `{% generation %}` what is learned

    Raises:
        UserError: the chat template of the checkpoint cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        plain, with_tools = (tokenizer.chat_template_for(tools) or "" for tools in (False, True))
        self.is_default = not tokenizer.chat_templates
        self.stop: tuple[str, ...] = DEFAULT_STOP if self.is_default else ()
        self._variables: dict[str, Any] = {"documents": None, **tokenizer.named_tokens}
        if self.is_default:
            # A plain dialogue begins as every text does, which need not be with the token that templates know.
            self._variables["bos_token"] = tokenizer.decode(tokenizer.prefix_ids, special=True)
        self.thinks = "<think>" in plain + with_tools
        self.tools: ToolFormat | None = None
        if "tools" in with_tools:
            self.tools = "xml" if "<function=" in with_tools else "json" if "<tool_call>" in with_tools else None
        sources = plain + with_tools
        self.reads_thinking = "enable_thinking" in sources
        self.marks_answers = re.search(r"\{%[-+]?\s*generation\b", sources) is not None
        # Tags of reasoning and calls are text, even where they are special: templates look for them in earlier answers.
        hidden = set(tokenizer.special_ids)
        special = (token for token, index in tokenizer.special_tokens.items() if index in hidden)
        self._marks = SpecialMarks(special, sources)
        self._renderer = Renderer(DEFAULT_TEMPLATE if self.is_default else plain, with_tools)
        try:
            self._turn_token = self._find_turn_token()
        except (RefusedError, WorkerFailedError) as error:
            raise UserError(f"chat template of the checkpoint: {error}; mend chat_template.jinja") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """Render the prompt that asks for the next message of an assistant.

        Args:
            messages: messages of chat/completions, with `content` as text and `arguments` as JSON objects
            tools: tools of chat/completions
            template_kwargs: further variables for the template, such as `enable_thinking`

        Raises:
            TemplateRefusal: the template refuses the messages or fails.
            UserError: the tokenizer does not know a character.
        """
        conversation = self.conversation(messages, tools, template_kwargs)
        text = conversation.prompt(len(messages))
        ids = conversation.encode(text)
        boundaries = tuple(index for index, token in enumerate(ids) if index and token == self._turn_token)
        return RenderedPrompt(tuple(ids), boundaries, _OPEN_REASONING.search(text) is not None)

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Conversation:
        """Return a conversation that is rendered up to several of its messages; the arguments are those of `render`.

        Raises:
            TemplateRefusal: the messages are nested too deeply.
        """
        variables: list[Any] = [messages, tools, template_kwargs or {}]
        try:
            mark = self._marks.mark_for(variables)
            return Conversation(self, self._marks.marked(variables, mark), mark)
        except RecursionError as error:
            raise TemplateRefusal("nested too deeply") from error

    def end_of(self, prompt: RenderedPrompt, count: int) -> RenderedPrompt:
        """Return the last `count` tokens of a plain dialogue, after the token that texts begin with, as in training."""
        bos = self._tokenizer.bos_id
        prefix = prompt.ids[:1] if prompt.ids[0] == bos else ()
        return RenderedPrompt((*prefix, *prompt.ids[len(prompt.ids) - count + len(prefix) :]), (), False)

    def _text(self, messages: Any, tools: Any, template_kwargs: Mapping[str, Any], add_generation_prompt: bool) -> str:
        return self._renderer.text(bool(tools), self._all(messages, tools, template_kwargs, add_generation_prompt))

    def _all(
        self, messages: Any, tools: Any, template_kwargs: Mapping[str, Any], add_generation_prompt: bool
    ) -> dict[str, Any]:
        """All variables of the template."""
        known = {
            "messages": list(map(_with_reasoning_names, messages)),
            "tools": tools or None,
            "add_generation_prompt": add_generation_prompt,
        }
        if repeated := known.keys() & template_kwargs.keys():
            raise TemplateRefusal(f"{min(repeated)} is set by the request itself")
        return {**self._variables, **template_kwargs, **known}

    def _find_turn_token(self) -> int | None:
        """Find the special token that begins a message, as it does in the prompt for an answer; None if there is none.

        Raises:
            RefusedError: the text is no template.
            WorkerFailedError: the template takes too much time or memory for the shortest of conversations.
        """
        messages = [{"role": "user", "content": "a"}]
        self._renderer.check()
        try:
            bare, prompted = (self._text(messages, None, {}, is_prompt) for is_prompt in (False, True))
        except RefusedError:
            return None
        begin = prompted[len(bare) :] if prompted.startswith(bare) else ""
        token = self._marks.first_at(begin)
        return None if token is None else self._tokenizer.special_tokens[token]


class Conversation:
    """Messages and tools that a chat template makes texts of, in which special tokens that they spell out are marked.

    All texts have the same marks, so that one may begin with another. `ChatTemplate.conversation` makes it.

    Args:
        template: the template
        variables: the messages, the tools and further variables, marked
        mark: the mark; empty if nothing had to be marked
    """

    def __init__(self, template: ChatTemplate, variables: Sequence[Any], mark: str) -> None:
        self._template, self._mark = template, mark
        self._messages, self._tools, self._variables = variables
        self._prepared: dict[tuple[int, bool, tuple[tuple[str, Any], ...]], str | Exception] = {}

    def prepare(self, cuts: Sequence[tuple[int, bool, Mapping[str, Any]]]) -> None:
        """Make several texts at once, which is faster than one by one; each is then returned when it is asked for.

        Args:
            cuts: for each text after how many messages it ends, whether it asks for the next, and its variables
        """
        wanted = [(count, {**more, "add_generation_prompt": is_prompt}) for count, is_prompt, more in cuts]
        template = self._template
        variables = template._all(self._messages, self._tools, self._variables, False)
        try:
            texts = template._renderer.texts(bool(self._tools), variables, wanted)
        except (RefusedError, WorkerFailedError):
            return  # asked for one by one, each of them says what it takes
        for (count, is_prompt, more), text in zip(cuts, texts, strict=True):
            self._prepared[count, is_prompt, tuple(more.items())] = text

    def prompt(self, count: int, **variables: Any) -> str:
        """Return the text that asks for the message after the first `count`, as the service asks.

        Raises:
            TemplateRefusal: the template refuses the messages or fails.
        """
        return self._text(count, variables, True)

    def transcript(self, count: int, **variables: Any) -> str:
        """Return the text of the first `count` messages, with nothing asked for; raises as `prompt` does."""
        return self._text(count, variables, False)

    def transcript_with_spans(self) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of all messages, and where in it the blocks lie that the template marks as what is learned.

        Raises:
            TemplateRefusal: the template refuses the messages or fails.
        """
        template = self._template
        variables = template._all(self._messages, self._tools, self._variables, False)
        try:
            return template._renderer.text_with_spans(bool(self._tools), variables)
        except (RefusedError, WorkerFailedError) as error:
            raise TemplateRefusal(str(error)) from error

    def _text(self, count: int, variables: Mapping[str, Any], is_prompt: bool) -> str:
        try:
            prepared = self._prepared.pop((count, is_prompt, tuple(variables.items())), None)
            if isinstance(prepared, Exception):
                raise prepared
            if prepared is not None:
                return prepared
            messages, variables = self._messages[:count], {**self._variables, **variables}
            return self._template._text(messages, self._tools, variables, is_prompt)
        except (RefusedError, WorkerFailedError) as error:
            raise TemplateRefusal(str(error)) from error

    def encode(self, text: str) -> list[int]:
        """Return the tokens of one of the texts, or of a part of it.

        Raises:
            UserError: the tokenizer does not know a character.
        """
        ids: list[int] = []
        for index, part in enumerate(self._template._marks.split(text, self._mark)):
            if part:
                ids += self._template._tokenizer.encode(part, special=index % 2 == 0)
        return ids

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens of one of the texts, and for each where in `plain(text)` it begins and ends."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        start = 0
        for index, part in enumerate(self._template._marks.split(text, self._mark)):
            more, where = self._template._tokenizer.encode_with_places(part, special=index % 2 == 0)
            ids += more
            places += [(start + begin, start + end) for begin, end in where]
            start += len(part)
        return ids, places

    def plain(self, text: str) -> str:
        """Return one of the texts, or a part of it, without marks."""
        return "".join(self._template._marks.split(text, self._mark))

    def end_after(self, text: str, begin: int) -> int:
        """Return where the first special token after a place of a text ends; the end of the text if there is none."""
        found = self._template._marks.first_after(text, begin)
        return len(text) if found is None else found.end()

    def end_of_turn(self, text: str) -> tuple[int, int] | None:
        """Return where the special token ends that closes a text, and its id; None if the text ends in none."""
        found = self._template._marks.last(text)
        return None if found is None else (found.end(), self._template._tokenizer.special_tokens[found.group()])


def _with_reasoning_names(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message with its reasoning under the names that templates read, as transformers does."""
    found = next((message[name] for name in _REASONING_NAMES if message.get(name) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}
