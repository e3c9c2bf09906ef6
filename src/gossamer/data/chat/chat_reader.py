"""What makes tokens of conversations for one tokenizer, and what its template asks for by default."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.data.chat.messages import Message
from gossamer.data.chat.template import ChatTemplate
from gossamer.data.chat.transcripts import TranscriptReader
from gossamer.data.chat.turns import TurnFinder, with_reasoning_split
from gossamer.data.tokenizer import Tokenizer

__all__ = ["DISABLE_THINKING", "ChatReader"]

DISABLE_THINKING = "{%- set enable_thinking = enable_thinking if enable_thinking is defined else false -%}\n"
"""What a template begins with that asks for no thought by default."""


class ChatReader:
    """A chat template, and what finds answers in what it writes.

    Args:
        tokenizer: the tokenizer with a chat template

    Attributes:
        template: the template
        finder: finds answers with the prompts that serving asks for them with
        transcripts: finds answers in whole conversations

    Raises:
        UserError: the chat template cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.template = ChatTemplate(tokenizer)
        self.finder = TurnFinder(tokenizer, self.template)
        self.transcripts = TranscriptReader(self.finder, self.template.marks_answers)

    def split(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with reasoning apart from content, if the template knows reasoning."""
        return [with_reasoning_split(message) if self.template.thinks else message for message in messages]

    def asks_for_thoughts(self) -> bool:
        """Return whether a plain request is another one than with `enable_thinking` false."""
        if not self.template.reads_thinking:
            return False
        said = [{"role": "user", "content": "a"}]
        plain, disabled = (self.template.render(said, None, more).ids for more in ({}, {"enable_thinking": False}))
        return plain != disabled
