"""Messages and tools of a record in their normal form, which is what a chat template gets from the service.

The form has a role, the content as one text, the reasoning, and calls whose arguments are objects. What a record says
in another way is brought into it; what cannot be is refused with the place and the key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gossamer.errors import UserError, did_you_mean, shorten
from gossamer.reading import parse_json

__all__ = ["LineReader", "Message", "is_empty", "read_conversation", "read_messages", "read_tools"]

ROLES = ("system", "developer", "user", "assistant", "tool")
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
}
"""Who speaks in `conversations`, as roles; `function_call` is an assistant whose text is a call."""

_REASONING = ("reasoning_content", "reasoning", "thinking")
_KNOWN = frozenset(("role", "content", "tool_calls", "tool_call_id", "name", "weight", *_REASONING))

Message = dict[str, Any]


def is_empty(message: Message) -> bool:
    """Whether a message has no text, no reasoning and no calls, so that learning it means to learn to say nothing."""
    texts = (message.get("content"), message.get("reasoning_content"))
    return not message.get("tool_calls") and not any((text or "").strip() for text in texts)


class LineReader:
    """One line of a file while it is read: its mistakes name the place and the key, keys that mean nothing are noted.

    Args:
        where: the place, for messages
        values: its keys, without those whose value is null
        ignored: is extended by the keys that mean nothing
    """

    def __init__(self, where: str, values: Mapping[str, Any], ignored: dict[str, None]) -> None:
        self.where, self.values, self.ignored = where, values, ignored

    def error(self, key: str, problem: str) -> UserError:
        """Return the mistake in a key."""
        return UserError(f"{self.where}: {key}: {problem}")

    def ignore(self, keys: Iterable[str]) -> None:
        """Note keys that mean nothing."""
        self.ignored.update(dict.fromkeys(keys))

    def text(self, key: str, value: Any) -> str:
        """Return a value that must be a text."""
        if not isinstance(value, str):
            raise self.error(key, f"must be a text, not {shorten(repr(value), 60)}")
        return value

    def mapping(self, key: str, value: Any) -> dict[str, Any]:
        """Return a value that must be an object, without the keys whose value is null."""
        if not isinstance(value, Mapping):
            raise self.error(key, f"must be an object, not {shorten(repr(value), 60)}")
        return {name: item for name, item in value.items() if item is not None}

    def items(self, key: str, value: Any) -> list[Any]:
        """Return a value that must be a list with something in it."""
        if not isinstance(value, list):
            raise self.error(key, f"must be a list, not {shorten(repr(value), 60)}")
        if not value:
            raise self.error(key, "is empty; leave the line out")
        return value

    def json(self, key: str, value: Any) -> Any:
        """Return a value that JSON must be able to hold, which a table's dates, bytes and NaN are not."""
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise self.error(key, f"holds what JSON cannot hold ({shorten(repr(value), 60)})") from None
        return value

    def parsed(self, key: str, text: str) -> Any:
        """Return the value of a text that must be JSON."""
        return parse_json(text, f"{self.where}: {key}", "write it as JSON")


def read_messages(line: LineReader, key: str, value: Any) -> tuple[list[Message], list[int]]:
    """Return messages in their normal form, and for each whether it is learned from (1 or 0).

    Raises:
        UserError: a message cannot be brought into the form.
    """
    messages, weights = [], []
    for index, item in enumerate(line.items(key, value)):
        message, weight = _message(line, f"{key}.{index}", item)
        messages.append(message)
        weights.append(weight)
    return messages, weights


def _message(line: LineReader, key: str, value: Any) -> tuple[Message, int]:
    given = line.mapping(key, value)
    role = given.get("role")
    if role not in ROLES:
        hint = did_you_mean(role, ROLES) if isinstance(role, str) else ""
        found = shorten(repr(role), 60) if "role" in given else "missing"
        raise line.error(f"{key}.role", f"must be {', '.join(ROLES[:-1])} or {ROLES[-1]}, not {found}{hint}")
    if "function_call" in given:
        raise line.error(f"{key}.function_call", "is an older form; write the call into tool_calls")
    line.ignore(f"{key.split('.')[0]}.{name}" for name in given if name not in _KNOWN)
    message: Message = {
        "role": "system" if role == "developer" else role,
        "content": _content(line, f"{key}.content", given.get("content", "")),
    }
    if "name" in given:
        message["name"] = line.text(f"{key}.name", given["name"])
    if role == "assistant":
        for name in _REASONING:
            if name in given and (text := line.text(f"{key}.{name}", given[name])):
                message["reasoning_content"] = text
                break
        if given.get("tool_calls"):
            message["tool_calls"] = _calls(line, f"{key}.tool_calls", given["tool_calls"])
    elif given.get("tool_calls"):
        raise line.error(f"{key}.tool_calls", f"a message of the role {role} calls no tools")
    if role == "tool" and "tool_call_id" in given:
        message["tool_call_id"] = line.text(f"{key}.tool_call_id", given["tool_call_id"])
    weight = given.get("weight", 1)
    if weight not in (0, 1):
        raise line.error(f"{key}.weight", f"must be 0 or 1, not {shorten(repr(weight), 60)}")
    return message, int(weight) if role == "assistant" else 0


def _content(line: LineReader, key: str, value: Any) -> str:
    """The text of a message; parts of text are joined."""
    if not isinstance(value, list):
        return line.text(key, value)
    texts = []
    for index, item in enumerate(value):
        part = line.mapping(f"{key}.{index}", item)
        if part.get("type", "text") != "text" or "text" not in part:
            found = shorten(repr(part.get("type")), 60)
            raise line.error(f"{key}.{index}", f"only parts of type text can be learned from, not {found}")
        texts.append(line.text(f"{key}.{index}.text", part["text"]))
    return "".join(texts)


def _calls(line: LineReader, key: str, value: Any) -> list[dict[str, Any]]:
    return [_call(line, f"{key}.{index}", item) for index, item in enumerate(line.items(key, value))]


def _call(line: LineReader, key: str, value: Any) -> dict[str, Any]:
    given = line.mapping(key, value)
    called = line.mapping(f"{key}.function", given["function"]) if "function" in given else given
    prefix = f"{key}.function" if "function" in given else key
    name = line.text(f"{prefix}.name", called.get("name"))
    arguments = called.get("arguments", {})
    if isinstance(arguments, str):
        arguments = line.parsed(f"{prefix}.arguments", arguments or "{}")
    if not isinstance(arguments, dict):
        raise line.error(f"{prefix}.arguments", f"must be a JSON object, not {shorten(repr(arguments), 60)}")
    call: dict[str, Any] = {"type": "function", "function": {"name": name}}
    call["function"]["arguments"] = line.json(f"{prefix}.arguments", arguments)
    return {"id": line.text(f"{key}.id", given["id"]), **call} if "id" in given else call


def read_tools(line: LineReader, value: Any) -> tuple[dict[str, Any], ...] | None:
    """Return the tools of a line as the service describes them to templates; None if there are none.

    Raises:
        UserError: the value is neither a list of functions nor a text with one.
    """
    if isinstance(value, str):
        value = line.parsed("tools", value) if value.strip() else None
    if value is None or value == []:
        return None
    return tuple(_tool(line, f"tools.{index}", item) for index, item in enumerate(line.items("tools", value)))


def _tool(line: LineReader, key: str, value: Any) -> dict[str, Any]:
    given = line.mapping(key, value)
    if given.get("type", "function") != "function":
        raise line.error(f"{key}.type", f"must be 'function', not {shorten(repr(given['type']), 60)}")
    described = line.mapping(f"{key}.function", given["function"]) if "function" in given else given
    function = {"name": line.text(f"{key}.function.name", described.get("name"))}
    if "description" in described:
        function["description"] = line.text(f"{key}.function.description", described["description"])
    if "parameters" in described:
        function["parameters"] = line.json(f"{key}.function.parameters", described["parameters"])
    known = ("type", "function", "strict", "name", "description", "parameters")
    line.ignore(f"tools.{name}" for name in {**given, **described} if name not in known)
    return {"type": "function", "function": function}


def read_conversation(line: LineReader, value: Any) -> tuple[list[Message], list[int]]:
    """Return the messages of a list of `from` and `value`, as `read_messages` does; raises as it does."""
    messages: list[Message] = []
    weights: list[int] = []
    for index, item in enumerate(line.items("conversations", value)):
        key = f"conversations.{index}"
        given = line.mapping(key, item)
        if "from" not in given and "role" in given:
            message, weight = _message(line, key, given)
        else:
            message, weight = _spoken(line, key, given)
        messages.append(message)
        weights.append(weight)
    return messages, weights


def _spoken(line: LineReader, key: str, given: Mapping[str, Any]) -> tuple[Message, int]:
    speaker = given.get("from")
    if speaker not in SPEAKERS:
        hint = did_you_mean(speaker, SPEAKERS) if isinstance(speaker, str) else ""
        raise line.error(f"{key}.from", f"must be one of {', '.join(SPEAKERS)}, not {shorten(repr(speaker), 60)}{hint}")
    text = line.text(f"{key}.value", given.get("value"))
    values: dict[str, Any] = {"role": SPEAKERS[speaker], "content": text}
    if speaker == "function_call":
        calls = line.parsed(f"{key}.value", text)
        values = {"role": "assistant", "tool_calls": calls if isinstance(calls, list) else [calls]}
    more = {name: item for name, item in given.items() if name not in ("from", "value")}
    return _message(line, key, {**more, **values})
