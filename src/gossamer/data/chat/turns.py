"""Answers of a conversation, each with the prompt that the service would have asked for it with.

The context of an answer is the prompt that serving makes of the messages before it, token for token. The target is what
the template writes after that prompt once the answer is among the messages, up to and with the token that ends it. The
two are encoded apart, as the engine does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gossamer.data.chat.messages import Message
from gossamer.data.chat.output_parser import Content, OutputParser, Reasoning
from gossamer.data.chat.template import ChatTemplate, Conversation, TemplateRefusal
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError, shorten

__all__ = ["Asked", "Turn", "TurnFinder", "with_reasoning_split"]

_OPENS_REASONING = re.compile(r"<think>\s*\Z")


@dataclass(frozen=True)
class Turn:
    """An answer that is learned.

    Attributes:
        index: of its message
        context: the tokens of the prompt
        target: the tokens of the answer, with the one that ends it
        end: the token that ends it
        has_reasoning: whether it has a thought
        opens_reasoning: whether the prompt ends in an open `<think>`
    """

    index: int
    context: list[int]
    target: list[int]
    end: int
    has_reasoning: bool
    opens_reasoning: bool


@dataclass(frozen=True)
class Asked:
    """The texts of an answer, with special tokens that messages spell out marked.

    Attributes:
        prompt: what asks for it
        answer: what the template writes after that, up to the end of the answer
        end: the token that ends it
    """

    prompt: str
    answer: str
    end: int


class TurnFinder:
    """Finds the answers of conversations for one chat template.

    Args:
        tokenizer: the tokenizer with its template
        template: the same template
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer, self._template = tokenizer, template

    def turns(
        self,
        where: str,
        conversation: Conversation,
        messages: Sequence[Message],
        weights: Sequence[int],
        thinking: bool | None = None,
    ) -> list[Turn]:
        """Return the answers of a conversation whose weight is 1.

        Args:
            where: the place of the conversation, for messages
            conversation: the template's view of the messages
            messages: the messages, with reasoning apart from content
            weights: for each message 1 if it is learned from, else 0
            thinking: whether a thought is asked for; None: where the answer has one

        Raises:
            UserError: the template does not take the messages, or writes an answer otherwise than it asks for it.
        """
        found = []
        learned = [index for index, weight in enumerate(weights) if weight]
        self.prepare(conversation, messages, learned, thinking)
        for index in learned:
            asked = self.asked(where, conversation, index, messages[index], thinking)
            context, target = conversation.encode(asked.prompt), conversation.encode(asked.answer)
            if not target or target[-1] != asked.end:  # the template ends no answer, so the end of the text does
                target.append(asked.end)
            opens = _OPENS_REASONING.search(asked.prompt) is not None
            has_reasoning = "reasoning_content" in messages[index]
            found.append(Turn(index, context, target, asked.end, has_reasoning, opens))
        return found

    def prepare(
        self, conversation: Conversation, messages: Sequence[Message], indices: Sequence[int], thinking: bool | None
    ) -> None:
        """Make the texts of several answers at once, as far as they are likely to be asked for."""
        cuts: list[tuple[int, bool, Mapping[str, bool]]] = []
        for index in indices:
            variables = self._attempts(messages[index], thinking)[0]
            cuts += [(index, True, variables), (index + 1, False, variables)]
        conversation.prepare(cuts)

    def _attempts(self, message: Message, thinking: bool | None) -> list[dict[str, bool]]:
        """The variables to ask for an answer with, the likelier first."""
        if not self._template.reads_thinking:
            return [{}]
        wish = "reasoning_content" in message if thinking is None else thinking
        return [{"enable_thinking": wish}, {"enable_thinking": not wish}]

    def asked(
        self, where: str, conversation: Conversation, index: int, message: Message, thinking: bool | None = None
    ) -> Asked:
        """Return the texts of one answer; arguments and exceptions are those of `turns`."""
        texts = []
        for variables in self._attempts(message, thinking):
            prompt, transcript = _texts(where, conversation, index, variables)
            if transcript.startswith(prompt):
                answer = transcript[len(prompt) :]
                ending = conversation.end_of_turn(answer)
                if ending is None:
                    return Asked(prompt, answer.rstrip(), self._tokenizer.eot_id)
                return Asked(prompt, answer[: ending[0]], ending[1])
            texts.append((prompt, transcript))
        raise _otherwise(where, index, *map(conversation.plain, texts[0]))


def _texts(where: str, conversation: Conversation, index: int, variables: Mapping[str, bool]) -> tuple[str, str]:
    """The prompt for a message, and the transcript with it."""
    if index == 0:
        raise UserError(
            f"{where}: messages.0: an answer that nothing was asked for cannot be learned; give it the weight 0"
        )
    try:
        return conversation.prompt(index, **variables), conversation.transcript(index + 1, **variables)
    except TemplateRefusal as error:
        raise UserError(
            f"{where}: messages.{index}: the chat template does not take this answer with what precedes it "
            f"({shorten(error, 200)}); mend the messages, or give it the weight 0"
        ) from error


def _otherwise(where: str, index: int, prompt: str, transcript: str) -> UserError:
    same = next(
        (place for place, (left, right) in enumerate(zip(prompt, transcript, strict=False)) if left != right),
        min(len(prompt), len(transcript)),
    )
    start = max(0, same - 20)
    return UserError(
        f"{where}: messages.{index}: the chat template asks for this answer with …{prompt[start : same + 30]!r} and "
        f"writes …{transcript[start : same + 30]!r}; mend the template, or take --turns joined"
    )


def with_reasoning_split(message: Message) -> Message:
    """Return an assistant's message with a leading `<think>…</think>` apart from its content, as serving reads it."""
    if message["role"] != "assistant" or "reasoning_content" in message or "</think>" not in message["content"]:
        return message
    parser = OutputParser(thinking=False, thinks=True, reader=None)
    events = [*parser.push(message["content"]), *parser.finish()]
    reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
    content = "".join(event.text for event in events if isinstance(event, Content))
    if content == message["content"]:
        return message
    return {**message, "content": content} | ({"reasoning_content": reasoning} if reasoning else {})
