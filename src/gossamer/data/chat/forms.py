"""The forms that a line of data may have, told apart by their keys, and what each of them means.

A line has the form with the most keys of those that it holds all of, and that form must be one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gossamer.data.chat.messages import LineReader, Message, read_conversation, read_messages, read_tools
from gossamer.errors import UserError, did_you_mean, shorten

__all__ = ["Completion", "Form", "Method", "Record", "form_of", "read_record"]

Method = Literal["sft", "dpo", "kto"]
"""How is learned: from answers, from pairs of a chosen and a rejected one, or from answers that are rated."""


@dataclass(frozen=True)
class Completion:
    """What follows a prompt.

    Attributes:
        messages: the messages; empty in a plain form
        text: the text of a plain form, else None
        weights: for each message whether it is learned from: 1 or 0
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None
    weights: tuple[int, ...] = ()


@dataclass(frozen=True)
class Record:
    """One line of a file in its normal form.

    Attributes:
        where: its place, for messages
        messages: what templates are given: a whole conversation, or the prompt of completions; empty in plain forms
        tools: the functions that the model is told about
        weights: for each message whether it is learned from: 1 or 0
        prompt_text: the prompt of a plain form
        text: a text that is learned whole
        completions: of pairs the chosen and the rejected one; of ratings and of a prompt with its completion that one
        label: whether a rated completion is good
    """

    where: str
    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] | None = None
    weights: tuple[int, ...] = ()
    prompt_text: str | None = None
    text: str | None = None
    completions: tuple[Completion, ...] = ()
    label: bool | None = None


@dataclass(frozen=True)
class Form:
    """A form of lines.

    Attributes:
        method: how is learned from it
        keys: the keys that it has
        read: makes the record
        more: keys that it may have
    """

    method: Method
    keys: frozenset[str]
    read: Callable[[LineReader], Record]
    more: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return ", ".join(sorted(self.keys))


def form_of(where: str, values: Mapping[str, Any], method: str = "auto") -> Form:
    """Return the form of a line by its keys.

    Args:
        where: its place, for messages
        values: its keys, without those whose value is null
        method: of several forms that of this method is taken; "auto" allows one alone

    Raises:
        UserError: no form has these keys, several have, or the only one is of another method.
    """
    matches = [form for form in FORMS if form.keys <= values.keys()]
    largest = [form for form in matches if not any(form.keys < other.keys for other in matches)]
    if not largest:
        raise UserError(f"{where}: {_no_form(values)}")
    if method == "dpo" and all(form.method == "kto" for form in largest):
        return largest[0]  # ratings of one prompt make pairs
    fitting = [form for form in largest if method in ("auto", form.method)]
    if not fitting:
        raise UserError(
            f"{where}: {largest[0]}: these keys are data for {largest[0].method}, not for {method}; leave --method "
            "out, or name other data"
        )
    if fitting[0].keys == {"messages"} and "completion" in values:
        raise UserError(f"{where}: label: is missing beside messages and completion; rate the completion")
    if len(fitting) > 1:
        raise UserError(f"{where}: has the keys of two forms ({fitting[0]}; {fitting[1]}); leave out those of one")
    return fitting[0]


def _no_form(values: Mapping[str, Any]) -> str:
    if not values:
        return "the object is empty; leave the line out"
    nearest = max(FORMS, key=lambda form: (len(form.keys & values.keys()), -len(form.keys)))
    found = shorten(", ".join(map(str, values)), 100)
    if missing := sorted(nearest.keys - values.keys()) if nearest.keys & values.keys() else []:
        hint = f"beside {', '.join(sorted(nearest.keys & values.keys()))} the key {missing[0]} is missing"
        hint += did_you_mean(missing[0], map(str, values))
    else:
        known = sorted({key for form in FORMS for key in form.keys})
        hints = [f"{key}{hint}" for key in values if (hint := did_you_mean(str(key), known))]
        hint = hints[0] if hints else "write messages, prompt and completion, or text"
    return f"no form of data has these keys ({found}); {hint}"


def read_record(form: Form, where: str, values: Mapping[str, Any], ignored: dict[str, None]) -> Record:
    """Return the record of a line of a form.

    Args:
        form: the form
        where: its place, for messages
        values: its keys, without those whose value is null
        ignored: is extended by the keys that mean nothing

    Raises:
        UserError: a value is not what its key asks for.
    """
    line = LineReader(where, values, ignored)
    line.ignore(key for key in values if key not in form.keys and key not in form.more)
    return form.read(line)


# What the forms mean.


def _conversation(line: LineReader, key: str) -> tuple[list[Message], list[int]]:
    """The messages under a key, after those of the system under `system`."""
    value = line.values[key]
    read = read_conversation if key == "conversations" else None
    messages, weights = read(line, value) if read else read_messages(line, key, value)
    if text := line.text("system", line.values.get("system", "")):
        if messages[0]["role"] == "system":
            raise line.error("system", f"{key} begins with a message of the system, too; leave one of them out")
        messages, weights = [{"role": "system", "content": text}, *messages], [0, *weights]
    return messages, weights


def _instruction(line: LineReader) -> tuple[list[Message], list[int]]:
    values = line.values
    question = line.text("instruction", values["instruction"])
    if more := line.text("input", values.get("input", "")):
        question = f"{question}\n\n{more}" if question else more
    messages: list[Message] = []
    if system := line.text("system", values.get("system", "")):
        messages.append({"role": "system", "content": system})
    for index, pair in enumerate(values.get("history") or ()):
        key = f"history.{index}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise line.error(key, "must be a list of what the user says and the answer")
        messages.append({"role": "user", "content": line.text(f"{key}.0", pair[0])})
        messages.append({"role": "assistant", "content": line.text(f"{key}.1", pair[1])})
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": line.text("output", values["output"])})
    return messages, [int(message["role"] == "assistant") for message in messages]


def _tools(line: LineReader) -> tuple[dict[str, Any], ...] | None:
    return read_tools(line, line.values.get("tools"))


def _whole(line: LineReader, messages: list[Message], weights: list[int]) -> Record:
    if not any(weights):
        raise line.error("messages", "no message of an assistant is learned from; leave the line out")
    return Record(line.where, tuple(messages), _tools(line), tuple(weights))


def _from_messages(line: LineReader) -> Record:
    return _whole(line, *_conversation(line, "messages"))


def _from_conversations(line: LineReader) -> Record:
    return _whole(line, *_conversation(line, "conversations"))


def _from_instruction(line: LineReader) -> Record:
    return _whole(line, *_instruction(line))


def _from_text(line: LineReader) -> Record:
    text = line.text("text", line.values["text"])
    if not text:
        raise line.error("text", "is empty; leave the line out")
    return Record(line.where, text=text)


def _completion(line: LineReader, key: str, is_plain: bool) -> Completion:
    """What follows a prompt: a text, a message or a list of messages."""
    value = line.values[key]
    if isinstance(value, str):
        if not value:
            raise line.error(key, "is empty; leave the line out")
        if is_plain:
            return Completion(text=value)
        value = {"role": "assistant", "content": value}
    messages, weights = read_messages(line, key, [value] if isinstance(value, dict) else value)
    return _answers(line, key, messages, weights)


def _answers(line: LineReader, key: str, messages: Sequence[Message], weights: Sequence[int]) -> Completion:
    """Messages that follow a prompt."""
    if not any(weights):
        raise line.error(key, "no message of an assistant is learned from; leave the line out")
    return Completion(tuple(messages), None, tuple(weights))


def _completed(line: LineReader, prompt_key: str, *keys: str, label: bool | None = None) -> Record:
    """The record of a prompt and what follows it."""
    prompt = line.values[prompt_key]
    is_plain = isinstance(prompt, str) and all(isinstance(line.values[key], str) for key in keys)
    completions = tuple(_completion(line, key, is_plain) for key in keys)
    if is_plain:
        return Record(line.where, prompt_text=prompt, completions=completions, label=label)
    if isinstance(prompt, str):
        messages: list[Message] = [{"role": "user", "content": prompt}]
    else:
        messages, _ = _conversation(line, prompt_key)
    return Record(
        line.where,
        tuple(messages),
        _tools(line),
        (0,) * len(messages),
        completions=completions,
        label=label,
    )


def _from_completion(line: LineReader) -> Record:
    return _completed(line, "prompt", "completion")


def _from_pair(line: LineReader) -> Record:
    chosen = line.values["chosen"]
    if isinstance(line.values["prompt"], str) and isinstance(chosen, list) and chosen:
        first = chosen[0]
        if isinstance(first, dict) and first.get("role") != "assistant":  # the prompt is repeated in both transcripts
            return _from_transcripts(line)
    return _differing(line, _completed(line, "prompt", "chosen", "rejected"))


def _from_transcripts(line: LineReader) -> Record:
    """The record of two whole transcripts, whose longest common beginning is the prompt."""
    chosen, rejected = line.values["chosen"], line.values["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt = _common_text(chosen, rejected)
        sides = tuple(Completion(text=text[len(prompt) :]) for text in (chosen, rejected))
        if not all(side.text for side in sides):
            raise line.error("chosen", "one of chosen and rejected begins the other; leave the line out")
        return _differing(line, Record(line.where, prompt_text=prompt, completions=sides))
    sides_of_messages = [read_messages(line, key, line.values[key]) for key in ("chosen", "rejected")]
    (first, _), (second, _) = sides_of_messages
    same = [left == right for left, right in zip(first, second, strict=False)]
    count = same.index(False) if False in same else len(same)
    if count == len(first) == len(second):
        raise line.error("rejected", "equals chosen, which teaches nothing; leave the line out")
    while count and (count in (len(first), len(second))):
        count -= 1
    if not count:
        raise line.error("chosen", "has no beginning in common with rejected; give the prompt under prompt")
    completions = []
    for key, (messages, weights) in zip(("chosen", "rejected"), sides_of_messages, strict=True):
        rest = messages[count:]
        if rest[0]["role"] != "assistant":
            raise line.error(f"{key}.{count}", f"chosen and rejected part here, where the {rest[0]['role']} speaks")
        completions.append(_answers(line, key, rest, weights[count:]))
    return _differing(
        line, Record(line.where, tuple(first[:count]), _tools(line), (0,) * count, completions=tuple(completions))
    )


def _common_text(first: str, second: str) -> str:
    """The longest common beginning of two texts, without a space at its end, which belongs to the next word."""
    count = next(
        (index for index, (left, right) in enumerate(zip(first, second, strict=False)) if left != right),
        min(len(first), len(second)),
    )
    return first[: count - 1] if count and first[count - 1] == " " else first[:count]


def _differing(line: LineReader, record: Record) -> Record:
    chosen, rejected = record.completions
    if chosen == rejected:
        raise line.error("rejected", "equals chosen, which teaches nothing; leave the line out")
    return record


def _from_preferred(line: LineReader) -> Record:
    given = line.mapping("input", line.values["input"])
    line.ignore(f"input.{key}" for key in given if key not in ("messages", "tools"))
    if "messages" not in given:
        raise line.error("input.messages", "is missing")
    keys = {"prompt": given["messages"], "tools": given.get("tools")}
    keys |= {"chosen": line.values["preferred_output"], "rejected": line.values["non_preferred_output"]}
    return _differing(line, _completed(LineReader(line.where, keys, line.ignored), "prompt", "chosen", "rejected"))


def _from_rejected_response(line: LineReader) -> Record:
    messages, weights = _conversation(line, "messages")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise line.error("messages", "must end with the chosen answer of an assistant after a prompt")
    rejected = _completion(line, "rejected_response", is_plain=False)
    completions = (_answers(line, "messages", messages[-1:], weights[-1:]), rejected)
    prompt = tuple(messages[:-1])
    return _differing(line, Record(line.where, prompt, _tools(line), (0,) * len(prompt), completions=completions))


def _label(line: LineReader, key: str) -> bool:
    value = line.values[key]
    if isinstance(value, bool) or value in (0, 1, -1):
        return value is True or value == 1
    raise line.error(key, f"must be true, false, 1, 0 or -1, not {shorten(repr(value), 60)}")


def _from_rating(line: LineReader) -> Record:
    prompt = "messages" if "messages" in line.values else "prompt"
    label = _label(line, "label" if "label" in line.values else "kto_tag")
    return _completed(line, prompt, "completion", label=label)


def _from_rated_conversation(line: LineReader) -> Record:
    label = _label(line, "kto_tag")
    if "instruction" in line.values:
        messages, weights = _instruction(line)
    else:
        messages, weights = _conversation(line, "messages" if "messages" in line.values else "conversations")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise line.error("kto_tag", "the conversation must end with the rated answer of an assistant after a prompt")
    prompt = tuple(messages[:-1])
    return Record(
        line.where,
        prompt,
        _tools(line),
        (0,) * len(prompt),
        completions=(_answers(line, "messages", messages[-1:], weights[-1:]),),
        label=label,
    )


def _form(method: Method, keys: str, read: Callable[[LineReader], Record], more: str = "") -> Form:
    return Form(method, frozenset(keys.split()), read, frozenset(more.split()))


_OF_RATINGS = "tools system model sampling time note rating_id"  # what the service writes beside a rating is no mistake

FORMS = (
    _form("sft", "messages", _from_messages, "tools system"),
    _form("sft", "conversations", _from_conversations, "tools system"),
    _form("sft", "instruction output", _from_instruction, "input system history tools"),
    _form("sft", "prompt completion", _from_completion, "tools system"),
    _form("sft", "text", _from_text),
    _form("dpo", "prompt chosen rejected", _from_pair, "tools system"),
    _form("dpo", "chosen rejected", _from_transcripts, "tools"),
    _form("dpo", "input preferred_output non_preferred_output", _from_preferred),
    _form("dpo", "messages rejected_response", _from_rejected_response, "tools system"),
    _form("kto", "prompt completion label", _from_rating, _OF_RATINGS),
    _form("kto", "messages completion label", _from_rating, _OF_RATINGS),
    _form("kto", "prompt completion kto_tag", _from_rating, _OF_RATINGS),
    _form("kto", "messages kto_tag", _from_rated_conversation, _OF_RATINGS),
    _form("kto", "conversations kto_tag", _from_rated_conversation, _OF_RATINGS),
    _form("kto", "instruction output kto_tag", _from_rated_conversation, f"input history {_OF_RATINGS}"),
)
"""Every form that a line may have."""
