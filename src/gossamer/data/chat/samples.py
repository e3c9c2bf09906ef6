"""From records to samples: the tokens of prompts and answers, and which of them are learned."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from gossamer.data.chat.chat_reader import DISABLE_THINKING, ChatReader
from gossamer.data.chat.chatml import with_chatml
from gossamer.data.chat.forms import Completion, Method, Record
from gossamer.data.chat.messages import is_empty
from gossamer.data.chat.records import Records
from gossamer.data.chat.renderer import NUM_WORKERS
from gossamer.data.chat.summary import Counts
from gossamer.data.chat.template import TemplateRefusal
from gossamer.data.chat.transcripts import Transcript
from gossamer.data.chat.turns import Turn
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.ops.linear_cross_entropy import IGNORED

__all__ = ["Example", "Examples", "Sample", "TooLong", "Turns", "build_examples"]

TooLong = Literal["drop", "cut", "refuse"]
"""What is done about a sample that is longer than the context."""
Turns = Literal["exact", "last", "joined"]
"""Which answers of a conversation are learned, and behind which context."""

_AHEAD = 64  # records that are worked on before the first of them is asked for
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
    chat = _chat_for(records, tokenizer)
    maker = _SampleMaker(tokenizer, chat, records.method, context, too_long, turns)
    examples: list[Example] = []
    counts = Counts()
    for record, made in zip(records.records, _in_threads(maker.samples, records.records), strict=True):
        key = _key(record)
        examples += [Example(tuple(sides), record.where, key, record.label) for sides in made.sides]
        counts.add(made.counts)
    if not examples:
        where = records.records[0].where
        raise UserError(f"{where}: no sample fits into {context:,} tokens; give a larger --context, or --too_long cut")
    if records.method == "kto":
        examples = _with_other_prompts(examples, context)
    learned_none = counts.without_reasoning and not counts.with_reasoning
    is_disabled = bool(chat is not None and learned_none and chat.asks_for_thoughts())
    ends = tuple(dict.fromkeys((*counts.ends, tokenizer.eot_id)))
    summary = tuple(counts.lines(records, context, is_disabled))
    if is_disabled:
        tokenizer = tokenizer.with_template_line(DISABLE_THINKING)
    return Examples(records.method, tuple(examples), tokenizer, ends, is_disabled, summary)


def _in_threads(make: Callable[[Record], _Made], records: Sequence[Record]) -> Iterator[_Made]:
    """Yield what is made of each record, in order: templates run in processes, tokenizers leave the interpreter."""
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        waiting: deque[Future[_Made]] = deque()
        for record in records:
            waiting.append(pool.submit(make, record))
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _chat_for(records: Records, tokenizer: Tokenizer) -> ChatReader | None:
    """What makes tokens of messages; None if no record has any."""
    first = next((record for record in records.records if record.messages), None)
    if first is None:
        return None
    if not tokenizer.chat_templates:
        raise UserError(
            f"{first.where}: messages need a chat template, and this model has none; give --template chatml, or write "
            "the lines as texts under prompt and completion"
        )
    return ChatReader(tokenizer)


@dataclass
class _Made:
    """What becomes of a record.

    Attributes:
        sides: for each example its samples
        counts: what is counted on the way
    """

    sides: list[list[Sample]]
    counts: Counts


class _SampleMaker:
    """Makes samples of records; several threads may use it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat: ChatReader | None,
        method: Method,
        context: int,
        too_long: TooLong,
        turns: Turns,
    ) -> None:
        self.tokenizer, self.chat, self.method = tokenizer, chat, method
        self.context, self.too_long, self.turns = context, too_long, turns

    def samples(self, record: Record) -> _Made:
        """Return the samples of each example of a record."""
        counts = Counts()
        try:
            sides = self._sides(record, counts)
        except UserError as error:  # a tokenizer that does not know a character does not know where it stands
            raise error if str(error).startswith(record.where) else UserError(f"{record.where}: {error}") from error
        fitting = [self._fitting(record.where, samples, counts) for samples in sides]
        return _Made([samples for samples in fitting if samples is not None], counts)

    def _sides(self, record: Record, counts: Counts) -> list[list[Sample]]:
        if record.text is not None:
            return [[self._plain("", record.text)]]
        if record.prompt_text is not None:
            return [[self._plain(record.prompt_text, one.text or "") for one in record.completions]]
        if not record.completions:
            return [[sample] for sample in self._conversation(record, record.weights, counts)]
        if self.method == "sft":
            return [[sample] for sample in self._conversation(*_behind(record, record.completions[0]), counts)]
        if self.method == "dpo":
            return [self._pair(record, counts)]
        return [[self._alone(record, record.completions[0], counts)]]

    def _plain(self, prompt: str, completion: str) -> Sample:
        """A sample without a template: the completion is learned, and the token that ends texts."""
        context = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(prompt)]
        return _sample([(context, [*self.tokenizer.encode(completion), self.tokenizer.eot_id])])

    def _pair(self, record: Record, counts: Counts) -> list[Sample]:
        """The samples of two completions, behind one and the same prompt."""
        assert self.chat is not None
        chosen = self.chat.split(record.completions[0].messages)
        wish = any("reasoning_content" in message for message in chosen)
        for thinking in (wish, not wish):
            found = Counts()
            sides = [self._alone(record, one, found, thinking) for one in record.completions]
            prompts = [side.input_ids[: int(np.argmax(side.labels != IGNORED))].tolist() for side in sides]
            if prompts[0] == prompts[1]:
                counts.add(found)
                return sides
        raise UserError(
            f"{record.where}: the chat template asks for chosen and rejected with different prompts; give both "
            "reasoning, or neither"
        )

    def _alone(self, record: Record, completion: Completion, counts: Counts, thinking: bool | None = None) -> Sample:
        """The one sample of a completion."""
        samples = self._conversation(*_behind(record, completion), counts, thinking)
        if len(samples) > 1:
            raise UserError(
                f"{record.where}: the template shows the answers of one completion otherwise once more follow; give "
                "one answer in each"
            )
        return samples[0]

    def _conversation(
        self, record: Record, weights: Sequence[int], counts: Counts, thinking: bool | None = None
    ) -> list[Sample]:
        """The samples of a conversation: an answer shares that of the one before if its prompt continues it."""
        assert self.chat is not None
        template, messages = self.chat.template, self.chat.split(record.messages)
        if template.tools is None and (key := _of_tools(record)):
            raise UserError(f"{record.where}: {key}: this model's chat template cannot call any; leave them out")
        try:
            conversation = template.conversation(messages, record.tools)
        except TemplateRefusal as error:
            raise UserError(f"{record.where}: messages: {error}; leave the line out") from error
        learned = [index for index, weight in enumerate(weights) if weight]
        if self.turns == "last":
            learned = learned[-1:]
        if empty := [index for index in learned if is_empty(messages[index])]:
            raise UserError(
                f"{record.where}: messages.{empty[0]}: the answer is empty; leave the line out, or give it the weight 0"
            )
        has_reasoning = ["reasoning_content" in messages[index] for index in learned]
        counts.trailing += learned[-1] + 1 < len(messages)
        counts.with_reasoning += sum(has_reasoning)
        counts.without_reasoning += len(learned) - sum(has_reasoning)
        counts.lost_reasoning += 0 if template.thinks else sum(has_reasoning)
        weights = [int(index in learned) for index in range(len(weights))]
        if self.turns == "joined":
            transcript = self.chat.transcripts.transcript(record.where, conversation, messages, weights)
            return [_joined(record.where, transcript, counts)]
        turns = self.chat.finder.turns(record.where, conversation, messages, weights, thinking)
        samples = _samples_of(turns)
        counts.conversations += 1
        counts.samples += len(samples)
        counts.tokens += sum(map(len, samples))
        counts.tokens_of_last += len(samples[-1])
        counts.left_open += sum(turn.opens_reasoning and not turn.has_reasoning for turn in turns)
        counts.ends.update(dict.fromkeys(turn.end for turn in turns))
        if template.marks_answers:
            counts.marked_otherwise += self.chat.transcripts.num_marked_otherwise(conversation, messages, turns)
        return samples

    def _fitting(self, where: str, sides: list[Sample], counts: Counts) -> list[Sample] | None:
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
            counts.cut += 1
            return cut
        counts.dropped += 1
        return None


def _joined(where: str, transcript: Transcript, counts: Counts) -> Sample:
    """The sample of a whole conversation."""
    counts.joined_answers += transcript.num_answers
    counts.foreign_answers += transcript.num_foreign
    counts.ends.update(dict.fromkeys(transcript.ends))
    ids = np.array(transcript.ids, np.int32)
    labels = np.where(transcript.is_target, ids, np.int32(IGNORED))
    labels[:1] = IGNORED
    sample = Sample(ids, labels)
    if not sample.num_targets:
        raise UserError(f"{where}: messages: the chat template marks nothing that is learned; leave the line out")
    return sample


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
