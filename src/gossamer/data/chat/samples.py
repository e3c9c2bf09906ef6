"""From records to samples: the tokens of prompts and answers, and which of them are learned."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from gossamer.data.chat.chatml import with_chatml
from gossamer.data.chat.forms import Completion, Method, Record
from gossamer.data.chat.messages import Message
from gossamer.data.chat.records import Records
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
    template: str = "",
) -> Examples:
    """Return what is learned from records.

    Args:
        records: the lines of the files
        tokenizer: the model's, with its chat template if it has one
        context: tokens that a sample may have
        too_long: what is done about longer ones: they are left out, cut at their end, or refused
        turns: "exact" learns every answer behind the prompt that serving makes, "last" the last one alone, "joined" all
            of them in the transcript
        template: "chatml" for the template of our own; empty for the tokenizer's

    Raises:
        UserError: a line cannot become a sample, or none is left.
    """
    if template == "chatml":
        tokenizer = with_chatml(tokenizer)
    builder = _Builder(tokenizer, records.method, context, too_long, turns)
    for record in records.records:
        builder.add(record)
    return builder.finish(records)


@dataclass
class _Counts:
    """What is counted on the way, for the summary."""

    conversations: int = 0
    samples_of_conversations: int = 0
    tokens: int = 0
    joined_tokens: int = 0
    dropped: int = 0
    cut: int = 0
    trailing: int = 0
    lost_reasoning: int = 0
    joined_answers: int = 0
    foreign_answers: int = 0
    turns: Counter[str] = field(default_factory=Counter)


class _Builder:
    """Makes examples of records, one after the other."""

    def __init__(self, tokenizer: Tokenizer, method: Method, context: int, too_long: TooLong, turns: Turns) -> None:
        self.tokenizer, self.method = tokenizer, method
        self.context, self.too_long, self.turns = context, too_long, turns
        self.template: ChatTemplate | None = None
        self.finder: TurnFinder | None = None
        self.examples: list[Example] = []
        self.ends: dict[int, None] = {}
        self.counts = _Counts()

    def add(self, record: Record) -> None:
        """Add what one record gives."""
        if record.text is not None:
            samples = [[self._plain(record.where, "", record.text)]]
        elif record.prompt_text is not None:
            sides = [self._plain(record.where, record.prompt_text, one.text or "") for one in record.completions]
            samples = [sides]
        elif record.completions:
            samples = self._completed(record)
        else:
            samples = [[sample] for sample in self._conversation(record, record.weights, None)]
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
        summary = tuple(self._summary(records, disabled))
        return Examples(self.method, tuple(examples), tokenizer, ends, disabled, summary)

    # Samples.

    def _plain(self, where: str, prompt: str, completion: str) -> Sample:
        """A sample without a template: the completion is learned, and the token that ends texts."""
        try:
            context = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(prompt)]
            target = [*self.tokenizer.encode(completion), self.tokenizer.eot_id]
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return _sample([(context, target)])

    def _completed(self, record: Record) -> list[list[Sample]]:
        """Samples of a prompt and its completions: a list of the sides of each example."""
        thinking = None
        if self.method == "dpo":  # both sides follow one prompt
            self._template_for(record)
            messages = self._split(record.completions[0].messages)
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
        template, finder = self._template_for(record)
        messages = self._split(record.messages)
        if template.tools is None and (key := _of_tools(record)):
            raise UserError(f"{record.where}: {key}: this model's chat template cannot call any; leave them out")
        try:
            conversation = template.conversation(messages, record.tools)
        except TemplateRefusal as error:
            raise UserError(f"{record.where}: messages: {error}; leave the line out") from error
        if self.turns == "joined":
            reader = TranscriptReader(finder, template.marks_answers)
            return [self._joined(record.where, reader.transcript(record.where, conversation, messages, weights))]
        if self.turns == "last":
            last = max(index for index, weight in enumerate(weights) if weight)
            weights = [int(index == last) for index in range(len(weights))]
        turns = finder.turns(record.where, conversation, messages, weights, thinking)
        samples = _samples_of(turns)
        self._count(messages, turns, samples)
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

    def _template_for(self, record: Record) -> tuple[ChatTemplate, TurnFinder]:
        if self.template is None or self.finder is None:
            if not self.tokenizer.chat_templates:
                raise UserError(
                    f"{record.where}: messages need a chat template, and this model has none; give --template chatml, "
                    "or write the lines as texts under prompt and completion"
                )
            self.template = ChatTemplate(self.tokenizer)
            self.finder = TurnFinder(self.tokenizer, self.template)
        return self.template, self.finder

    def _split(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with reasoning apart from content, if the template knows reasoning."""
        assert self.template is not None
        return [with_reasoning_split(message) if self.template.thinks else message for message in messages]

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
        counts.samples_of_conversations += len(samples)
        counts.tokens += sum(map(len, samples))
        counts.joined_tokens += len(samples[-1])
        counts.trailing += turns[-1].index + 1 < len(messages)
        self.ends.update(dict.fromkeys(turn.end for turn in turns))
        for turn in turns:
            counts.turns["reasoning" if turn.has_reasoning else "no reasoning"] += 1
            counts.turns["left open"] += turn.opens_reasoning and not turn.has_reasoning
        if self.template is not None and not self.template.thinks:
            counts.lost_reasoning += sum(turn.has_reasoning for turn in turns)

    def _tokenizer_to_save(self) -> tuple[Tokenizer, bool]:
        """The tokenizer with the template for serving, and whether that says that no thought is asked for."""
        learned_none = self.counts.turns["no reasoning"] and not self.counts.turns["reasoning"]
        if self.template is None or self.finder is None or not learned_none or not self.template.reads_thinking:
            return self.tokenizer, False
        said = [{"role": "user", "content": "a"}]
        if self.template.render(said).ids == self.template.render(said, None, {"enable_thinking": False}).ids:
            return self.tokenizer, False
        return self.tokenizer.with_template_line(DISABLE_THINKING), True

    def _summary(self, records: Records, is_disabled: bool) -> Iterable[str]:
        counts = self.counts
        yield from records.notices
        if records.ignored_keys:
            yield f"keys that mean nothing here: {', '.join(records.ignored_keys)}"
        if records.num_equal:
            yield f"{records.num_equal:,} lines say the same as an earlier one"
        if counts.trailing:
            yield f"{counts.trailing:,} conversations go on after the last answer that is learned; that is left out"
        if counts.samples_of_conversations > counts.conversations and counts.joined_tokens:
            more = counts.tokens / counts.joined_tokens - 1
            yield (
                f"{counts.conversations:,} conversations → {counts.samples_of_conversations:,} samples (the template "
                f"shows earlier turns otherwise than it asked for them), {more:+.0%} tokens"
            )
        if counts.joined_answers:
            yield (
                f"{counts.foreign_answers:,} of {counts.joined_answers:,} answers stand in a context that serving "
                "never builds (--turns joined)"
            )
        if counts.dropped:
            yield f"{counts.dropped:,} examples of more than {self.context:,} tokens were left out (--too_long drop)"
        if counts.cut:
            yield f"{counts.cut:,} examples were cut to {self.context:,} tokens"
        if counts.lost_reasoning:
            yield f"{counts.lost_reasoning:,} answers have reasoning, which the chat template does not write"
        if is_disabled:
            yield (
                "no answer has reasoning: the template that is saved asks for none unless a request sets "
                "enable_thinking"
            )
        elif counts.turns["left open"]:
            yield (
                f"{counts.turns['left open']:,} answers without reasoning follow a prompt that opens <think>; the "
                "model learns not to think"
            )


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
    weights = [0] * len(record.messages) + [int(message["role"] == "assistant") for message in completion.messages]
    return replace(record, messages=messages), weights


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
