"""From records to samples: the tokens of prompts and answers, and which of them are learned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from gossamer.data.chat.chatml import with_chatml
from gossamer.data.chat.forms import Completion, Method, Record
from gossamer.data.chat.messages import Message
from gossamer.data.chat.records import Records
from gossamer.data.chat.summary import Counts
from gossamer.data.chat.template import ChatTemplate, TemplateRefusal
from gossamer.data.chat.transcripts import Transcript, TranscriptReader
from gossamer.data.chat.turns import Turn, TurnFinder, with_reasoning_split
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.ops.linear_cross_entropy import IGNORED

__all__ = ["Example", "Examples", "Sample", "TooLong", "Turns", "build_examples"]

TooLong = Literal["drop", "cut", "refuse"]
"""What is done about a sample that is longer than the context."""
Turns = Literal["exact", "last", "joined"]
"""Which answers of a conversation are learned, and behind which context."""

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Sample:
    """Tokens that stand in a row as one document.

    Attributes:
        input_ids: int32 [T]
        labels: int32 [T], the token itself where it is learned, else -100, as it always is at the first place
    """

    input_ids: Ids
    labels: Ids

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """How many tokens are learned."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True, eq=False)
class Example:
    """What a step counts as one.

    Attributes:
        samples: one; of a pair the chosen and the rejected one; of a rating the rated one and, if there is another
            prompt, the same completion behind the prompt of the next example
        where: the place of its line, for messages
        key: a hash of the first message of the user, or of the text, by which it is held out
        label: whether a rated completion is good
    """

    samples: tuple[Sample, ...]
    where: str
    key: str
    label: bool | None = None

    def __len__(self) -> int:
        return sum(map(len, self.samples))


@dataclass(frozen=True, eq=False)
class Examples:
    """All that is learned from some files.

    Attributes:
        method: how is learned from it
        examples: in the order of the files
        tokenizer: the tokenizer that is saved with the model; its template is that of serving
        end_ids: the tokens that end answers, for generation_config.json
        disable_thinking: whether the template of `tokenizer` says that no thought is asked for by default, because none
            was learned
        summary: what people should know, a line each
    """

    method: Method
    examples: tuple[Example, ...]
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    disable_thinking: bool
    summary: tuple[str, ...]


def build_examples(
    records: Records,
    tokenizer: Tokenizer,
    *,
    context: int,
    too_long: TooLong = "drop",
    turns: Turns = "exact",
    template: str = "stored",
) -> Examples:
    """Return what is learned from records.

    Args:
        records: the lines of the files
        tokenizer: the model's, with its chat template if it has one
        context: tokens that a sample may have
        too_long: what is done about longer ones: they are left out, cut at their end, or refused
        turns: "exact" learns every answer behind the prompt that serving makes, "last" the last one alone, "joined" all
            of them in the transcript
        template: "chatml" for the template of our own, "stored" for the tokenizer's

    Raises:
        UserError: a line cannot become a sample, or none is left.
    """
    if template == "chatml":
        tokenizer = with_chatml(tokenizer)
    builder = _Builder(tokenizer, records.method, context, too_long, turns)
    for record in records.records:
        builder.add(record)
    return builder.finish(records)


class _Chat:
    """What makes tokens of messages.

    Args:
        tokenizer: the tokenizer with a chat template
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.template = ChatTemplate(tokenizer)
        self.finder = TurnFinder(tokenizer, self.template)
        self.transcripts = TranscriptReader(self.finder, self.template.marks_answers)

    def split(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with reasoning apart from content, if the template knows reasoning."""
        return [with_reasoning_split(message) if self.template.thinks else message for message in messages]


class _Builder:
    """Makes examples of records, one after the other."""

    def __init__(self, tokenizer: Tokenizer, method: Method, context: int, too_long: TooLong, turns: Turns) -> None:
        self.tokenizer, self.method = tokenizer, method
        self.context, self.too_long, self.turns = context, too_long, turns
        self.chat: _Chat | None = None  # once a record has messages
        self.examples: list[Example] = []
        self.ends: dict[int, None] = {}
        self.counts = Counts()

    def add(self, record: Record) -> None:
        """Add what one record gives."""
        try:
            samples = self._samples(record)
        except UserError as error:  # a tokenizer that does not know a character does not know where it stands
            raise error if str(error).startswith(record.where) else UserError(f"{record.where}: {error}") from error
        key = _key(record)
        for sides in samples:
            fitting = self._fitting(record.where, sides)
            if fitting is not None:
                self.examples.append(Example(tuple(fitting), record.where, key, record.label))

    def finish(self, records: Records) -> Examples:
        """Return all examples."""
        if not self.examples:
            where = records.records[0].where
            raise UserError(
                f"{where}: no sample fits into {self.context:,} tokens; give a larger --context, or --too_long cut"
            )
        examples = _with_other_prompts(self.examples, self.context) if self.method == "kto" else self.examples
        tokenizer, disabled = self._tokenizer_to_save()
        ends = tuple(dict.fromkeys((*self.ends, tokenizer.eot_id)))
        summary = tuple(self.counts.lines(records, self.context, disabled))
        return Examples(self.method, tuple(examples), tokenizer, ends, disabled, summary)

    # Samples.

    def _samples(self, record: Record) -> list[list[Sample]]:
        """The sides of each example of a record."""
        if record.text is not None:
            return [[self._plain("", record.text)]]
        if record.prompt_text is not None:
            return [[self._plain(record.prompt_text, one.text or "") for one in record.completions]]
        if record.completions:
            return self._completed(record)
        return [[sample] for sample in self._conversation(record, record.weights, None)]

    def _plain(self, prompt: str, completion: str) -> Sample:
        """A sample without a template: the completion is learned, and the token that ends texts."""
        context = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(prompt)]
        return _sample([(context, [*self.tokenizer.encode(completion), self.tokenizer.eot_id])])

    def _completed(self, record: Record) -> list[list[Sample]]:
        """Samples of a prompt and its completions: a list of the sides of each example."""
        thinking = None
        if self.method == "dpo":  # both sides follow one prompt
            messages = self._chat_for(record).split(record.completions[0].messages)
            thinking = any("reasoning_content" in message for message in messages)
        sides = [self._conversation(*_behind(record, one), thinking) for one in record.completions]
        if self.method == "sft":
            return [[sample] for sample in sides[0]]
        if any(len(samples) > 1 for samples in sides):
            raise UserError(
                f"{record.where}: the template shows the answers of one completion otherwise once more follow; give "
                "one answer in each"
            )
        return [[samples[0] for samples in sides]]

    def _conversation(self, record: Record, weights: Sequence[int], thinking: bool | None) -> list[Sample]:
        """The samples of a conversation: an answer shares that of the one before if its prompt continues it."""
        chat = self._chat_for(record)
        template, messages = chat.template, chat.split(record.messages)
        if template.tools is None and (key := _of_tools(record)):
            raise UserError(f"{record.where}: {key}: this model's chat template cannot call any; leave them out")
        try:
            conversation = template.conversation(messages, record.tools)
        except TemplateRefusal as error:
            raise UserError(f"{record.where}: messages: {error}; leave the line out") from error
        if self.turns == "joined":
            transcript = chat.transcripts.transcript(record.where, conversation, messages, weights)
            return [self._joined(record.where, transcript)]
        if self.turns == "last":
            last = max(index for index, weight in enumerate(weights) if weight)
            weights = [int(index == last) for index in range(len(weights))]
        turns = chat.finder.turns(record.where, conversation, messages, weights, thinking)
        samples = _samples_of(turns)
        self._count(messages, turns, samples)
        if template.marks_answers:
            self.counts.marked_otherwise += chat.transcripts.num_marked_otherwise(conversation, messages, turns)
        return samples

    def _joined(self, where: str, transcript: Transcript) -> Sample:
        """The sample of a whole conversation."""
        self.counts.joined_answers += transcript.num_answers
        self.counts.foreign_answers += transcript.num_foreign
        self.ends.update(dict.fromkeys(transcript.ends))
        ids = np.array(transcript.ids, np.int32)
        labels = np.where(transcript.is_target, ids, np.int32(IGNORED))
        labels[:1] = IGNORED
        sample = Sample(ids, labels)
        if not sample.num_targets:
            raise UserError(f"{where}: messages: the chat template marks nothing that is learned; leave the line out")
        return sample

    def _chat_for(self, record: Record) -> _Chat:
        if self.chat is None:
            if not self.tokenizer.chat_templates:
                raise UserError(
                    f"{record.where}: messages need a chat template, and this model has none; give --template chatml, "
                    "or write the lines as texts under prompt and completion"
                )
            self.chat = _Chat(self.tokenizer)
        return self.chat

    def _fitting(self, where: str, sides: list[Sample]) -> list[Sample] | None:
        """The samples of an example as far as they fit into the context; None if it is left out."""
        if all(len(sample) <= self.context for sample in sides):
            return sides
        if self.too_long == "refuse":
            longest = max(map(len, sides))
            raise UserError(
                f"{where}: a sample of {longest:,} tokens is longer than the context of {self.context:,}; shorten it, "
                "give a larger --context, or --too_long drop"
            )
        cut = [Sample(sample.input_ids[: self.context], sample.labels[: self.context]) for sample in sides]
        if self.too_long == "cut" and all(sample.num_targets for sample in cut):
            self.counts.cut += 1
            return cut
        self.counts.dropped += 1
        return None

    # What people are told.

    def _count(self, messages: Sequence[Message], turns: list[Turn], samples: list[Sample]) -> None:
        counts = self.counts
        counts.conversations += 1
        counts.samples += len(samples)
        counts.tokens += sum(map(len, samples))
        counts.tokens_of_last += len(samples[-1])
        counts.trailing += turns[-1].index + 1 < len(messages)
        self.ends.update(dict.fromkeys(turn.end for turn in turns))
        for turn in turns:
            counts.with_reasoning += turn.has_reasoning
            counts.without_reasoning += not turn.has_reasoning
            counts.left_open += turn.opens_reasoning and not turn.has_reasoning
        if self.chat is not None and not self.chat.template.thinks:
            counts.lost_reasoning += sum(turn.has_reasoning for turn in turns)

    def _tokenizer_to_save(self) -> tuple[Tokenizer, bool]:
        """The tokenizer with the template for serving, and whether that says that no thought is asked for."""
        learned_none = self.counts.without_reasoning and not self.counts.with_reasoning
        if self.chat is None or not learned_none or not self.chat.template.reads_thinking:
            return self.tokenizer, False
        said = [{"role": "user", "content": "a"}]
        bare, disabled = (self.chat.template.render(said, None, more) for more in ({}, {"enable_thinking": False}))
        if bare.ids == disabled.ids:
            return self.tokenizer, False
        return self.tokenizer.with_template_line(DISABLE_THINKING), True


DISABLE_THINKING = "{%- set enable_thinking = enable_thinking if enable_thinking is defined else false -%}\n"
"""What a template begins with that asks for no thought by default."""


def _of_tools(record: Record) -> str:
    """The first key of a record that needs a template with tools; empty if there is none."""
    if record.tools:
        return "tools"
    called = (f"messages.{index}.tool_calls" for index, one in enumerate(record.messages) if one.get("tool_calls"))
    return next(called, "")


def _behind(record: Record, completion: Completion) -> tuple[Record, list[int]]:
    """The conversation of a prompt and a completion, and the weights of its messages."""
    messages = (*record.messages, *completion.messages)
    return replace(record, messages=messages), [*[0] * len(record.messages), *completion.weights]


def _samples_of(turns: Sequence[Turn]) -> list[Sample]:
    samples: list[list[tuple[list[int], list[int]]]] = []
    ids: list[int] = []
    for turn in turns:
        if not samples or turn.context[: len(ids)] != ids:
            samples.append([])
            ids = []
        samples[-1].append((turn.context[len(ids) :], turn.target))
        ids = [*turn.context, *turn.target]
    return [_sample(spans) for spans in samples]


def _sample(spans: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Sample:
    """A sample of contexts and targets in turn."""
    ids: list[int] = []
    labels: list[int] = []
    for context, target in spans:
        ids += [*context, *target]
        labels += [*[IGNORED] * len(context), *target]
    labels[0] = IGNORED  # nothing stands before it
    return Sample(np.array(ids, np.int32), np.array(labels, np.int32))


def _key(record: Record) -> str:
    """A hash of what the user says first, whatever its case and white space."""
    said = next((message["content"] for message in record.messages if message["role"] == "user"), None)
    text = record.text if record.text is not None else record.prompt_text if said is None else said
    words = " ".join((text or "").casefold().split())
    return hashlib.blake2b(words.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _with_other_prompts(examples: Sequence[Example], context: int) -> list[Example]:
    """Return ratings with a second sample each: the completion behind the next example's prompt that is another one.

    Several answers to one prompt often stand side by side, and a completion behind its own prompt would not tell what
    the network gives completions that have nothing to do with it.
    """
    learned = [int(np.argmax(example.samples[0].labels != IGNORED)) for example in examples]
    prompts = [example.samples[0].input_ids[:first] for example, first in zip(examples, learned, strict=True)]
    made = []
    others = _next_others([prompt.tobytes() for prompt in prompts])
    for example, first, other in zip(examples, learned, others, strict=True):
        (own,) = example.samples
        if other is not None:
            ids = np.concatenate([prompts[other], own.input_ids[first:]])[:context]
            labels = np.concatenate([np.full(len(prompts[other]), IGNORED, np.int32), own.labels[first:]])[:context]
            mismatched = Sample(ids, labels)
            if mismatched.num_targets:
                example = replace(example, samples=(own, mismatched))
        made.append(example)
    return made


def _next_others(values: Sequence[bytes]) -> list[int | None]:
    """Return for each place the next one whose value is another, going round; None if all are equal."""
    count = len(values)
    others: list[int | None] = [None] * count
    for place in reversed(range(2 * count)):  # the second time round, the end of the list knows its beginning
        here, following = place % count, (place + 1) % count
        others[here] = following if values[following] != values[here] else others[following]
    return others
