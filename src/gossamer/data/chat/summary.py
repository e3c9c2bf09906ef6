"""What people are told about data before it is learned from: what was unfolded, left out or cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from gossamer.data.chat.records import Records

__all__ = ["Counts"]


@dataclass
class Counts:
    """What is counted while samples are made.

    Attributes:
        conversations: that became samples of their own
        samples: of those conversations
        tokens: of those samples
        tokens_of_last: of the last sample of each conversation, in which the whole of it stands
        dropped: examples that are longer than the context and were left out
        cut: examples that were cut to the context
        trailing: conversations that go on after the last answer that is learned
        with_reasoning: answers with reasoning
        without_reasoning: answers without
        left_open: answers without reasoning behind a prompt that opens a thought
        lost_reasoning: answers whose reasoning the template does not write
        marked_otherwise: answers of which the template marks other text as what is learned
        joined_answers: answers of whole transcripts
        foreign_answers: those of them that serving would have asked for with other tokens
        ends: the tokens that end answers, as keys
    """

    conversations: int = 0
    samples: int = 0
    tokens: int = 0
    tokens_of_last: int = 0
    dropped: int = 0
    cut: int = 0
    trailing: int = 0
    with_reasoning: int = 0
    without_reasoning: int = 0
    left_open: int = 0
    lost_reasoning: int = 0
    marked_otherwise: int = 0
    joined_answers: int = 0
    foreign_answers: int = 0
    ends: dict[int, None] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        """Add what was counted of another record."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            setattr(self, one.name, {**mine, **theirs} if isinstance(mine, dict) else mine + theirs)

    def lines(self, records: Records, context: int, is_disabled: bool) -> Iterator[str]:
        """Yield what people should know, a line each.

        Args:
            records: the lines of the files
            context: tokens that a sample may have
            is_disabled: whether the template that is saved asks for no thought by default
        """
        yield from records.notices
        if records.ignored_keys:
            yield f"keys that mean nothing here: {', '.join(records.ignored_keys)}"
        if records.num_equal:
            yield f"{records.num_equal:,} lines say the same as an earlier one"
        if self.trailing:
            yield f"{self.trailing:,} conversations go on after the last answer that is learned; that is left out"
        if self.samples > self.conversations:
            yield (
                f"{self.conversations:,} conversations → {self.samples:,} samples (the template shows earlier turns "
                f"otherwise than it asked for them), {self.tokens / self.tokens_of_last - 1:+.0%} tokens"
            )
        if self.joined_answers:
            yield (
                f"{self.foreign_answers:,} of {self.joined_answers:,} answers stand in a context that serving never "
                "builds (--turns joined)"
            )
        if self.marked_otherwise:
            yield (
                f"the template marks other text than what is generated as what is learned, in "
                f"{self.marked_otherwise:,} answers; what is generated is learned"
            )
        if self.dropped:
            yield f"{self.dropped:,} examples of more than {context:,} tokens were left out (--too_long drop)"
        if self.cut:
            yield f"{self.cut:,} examples were cut to {context:,} tokens"
        if self.lost_reasoning:
            yield f"{self.lost_reasoning:,} answers have reasoning, which the chat template does not write"
        if is_disabled:
            yield (
                "no answer has reasoning: the template that is saved asks for none unless a request sets "
                "enable_thinking"
            )
        elif self.left_open:
            yield (
                f"{self.left_open:,} answers without reasoning follow a prompt that opens <think>; the model learns "
                "not to think"
            )
