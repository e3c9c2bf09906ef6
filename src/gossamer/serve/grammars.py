"""What an answer must look like, as one grammar in llguidance's variant of Lark.

``response_format`` and ``tool_choice`` become the same thing here: a rule for the whole text that the model may write.
Where the prompt ends in an open ``<think>``, the model thinks freely first, and the rule holds from ``</think>`` on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance

from gossamer.infer.request import Grammar, GrammarKind
from gossamer.serve.schemas import accepted_types, resolve
from gossamer.serve.template import ToolFormat

__all__ = ["CallRules", "call_grammar", "format_grammar"]

# A model that is unsure goes on with white space for ever; indented JSON needs some, a call's JSON has none to choose.
_SOME_SPACE = {"whitespace_pattern": r"[ \n\t]{0,20}"}
_AS_TRAINED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TEXT = r"TEXT: /(?s:.*)/"
_PLAIN = r"PLAIN: /(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/"
_THOUGHT = 'thought[lazy]: TEXT "</think>"\nGAP: /[\\n ]{0,8}/'


@dataclass(frozen=True)
class CallRules:
    """Attributes:
    tools: functions that may be called, as chat/completions takes them
    forced: the answer is a call and nothing else
    single: one call at most
    """

    tools: Sequence[Mapping[str, Any]]
    forced: bool
    single: bool

    @property
    def binding(self) -> bool:
        """Whether there is anything to hold the model to."""
        return self.forced or self.single or any(tool["function"].get("strict") for tool in self.tools)


def format_grammar(kind: GrammarKind, text: str, thinking: bool) -> Grammar | None:
    """Of a ``response_format``.

    Args:
        kind: of the text
        text: a schema, a pattern or a grammar
        thinking: the prompt ends in an open thought

    Returns:
        None where a thought cannot come first: a Lark grammar has a beginning of its own.
    """
    if kind == "json_object":
        kind, text = "json_schema", '{"type": "object"}'
    if kind == "json_schema":
        text = json.dumps({"x-guidance": _SOME_SPACE} | json.loads(text))
    if not thinking:
        return Grammar(kind, text)
    if kind == "lark":
        return None
    answer = _regex(text) if kind == "regex" else f"%json {text}"
    return Grammar("lark", f"start: thought GAP answer\nanswer: {answer}\n{_THOUGHT}\n{_TEXT}\n")


def call_grammar(rules: CallRules, form: ToolFormat, thinking: bool) -> Grammar:
    """Of calls by ``tool_choice`` and ``strict``, in the model's own format.

    Without ``strict`` a function's arguments are any object in the format "json" unless the call is forced, and always
    hold to the parameters' names in the format "xml", which has no other way to be told.
    """
    lines = [_TEXT, _PLAIN]
    if thinking:
        lines.append(_THOUGHT)
    start = "thought GAP " if thinking else ""
    if rules.forced:
        start += "call" if rules.single else 'call ("\\n" call)*'
        lines.append('call: "<tool_call>" body "</tool_call>"')
    else:
        start += "call? PLAIN" if rules.single else "call* PLAIN"
        lines += ['call: head body "</tool_call>"', 'head[lazy]: TEXT "<tool_call>"']
    lines.append("body: " + " | ".join(f"f{index}" for index in range(len(rules.tools))))
    for index, tool in enumerate(rules.tools):
        function = tool["function"]
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        if form == "json":
            held = schema if rules.forced or function.get("strict") else {"type": "object"}
            lines.append(f'f{index}: "\\n" %json {json.dumps(_named(function["name"], held))} "\\n"')
        else:
            lines += _xml(index, function["name"], schema)
    return Grammar("lark", f"start: {start}\n" + "\n".join(lines) + "\n")


def _named(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "x-guidance": _AS_TRAINED,
        **_definitions(arguments),
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _xml(index: int, name: str, schema: Mapping[str, Any]) -> list[str]:
    """Rules of one function: its parameters in the schema's order, those that are not required left out at will."""
    required = schema.get("required")
    properties = schema.get("properties")
    sequence, lines = [], []
    for place, (key, value) in enumerate(properties.items() if isinstance(properties, Mapping) else ()):
        rule = f"f{index}_p{place}"
        sequence.append(rule if isinstance(required, list) and key in required else f"{rule}?")
        ways = [_way(f"{rule}_{number}", way, schema) for number, way in enumerate(_ways(value, schema))]
        lines.append(f"{rule}: {json.dumps(f'<parameter={key}>' + chr(10))} ({' | '.join(name for name, _ in ways)})")
        lines += [line for _, rules in ways for line in rules]
    begin = json.dumps(f"\n<function={name}>\n")
    return [f'f{index}: {begin} {" ".join(sequence)} "</function>\\n"', *lines]


def _way(rule: str, way: _Text | _Json, root: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The name and the lines of the rule for one way to write a value, with the tag that ends it."""
    end = '"\\n</parameter>\\n"'
    if isinstance(way, _Json):
        whole = way.schema
        if isinstance(whole, Mapping):
            whole = {"x-guidance": _AS_TRAINED, **_definitions(root), **whole}
        return rule, [f"{rule}: %json {json.dumps(whole)} {end}"]
    return rule, [f"{rule}[lazy]: {rule.upper()} {end}", f"{rule.upper()}: {way.terminal}"]


@dataclass(frozen=True)
class _Text:
    """A value that is written bare: ``terminal``, in Lark, is what it must match."""

    terminal: str


@dataclass(frozen=True)
class _Json:
    """A value that is written as JSON."""

    schema: Any


# The tags that end a value for who reads the call.
_ANY_TEXT = r"/(?s:.*)/ & ~/(?s:.*)(<\/parameter>|<parameter=)(?s:.*)/"
_MOST_WAYS = 64


def _ways(schema: Any, root: Mapping[str, Any], depth: int = 8) -> list[_Text | _Json]:
    """How a parameter's value may be written: bare where it is a string, else as JSON; all of the ways it may take.

    What is a string is what ``schemas`` says, which the reader of calls asks, too: a value whose schema names no type
    is read as text.
    """
    schema = resolve(schema, root) if isinstance(schema, Mapping) else {}
    types = accepted_types(schema, root)
    if types and "string" not in types:
        return [_Json(schema)]
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    unions = [branch for union in ("anyOf", "oneOf") for branch in _list(schema.get(union))]
    if isinstance(choices, list) and choices:
        texts = [json.dumps(choice) for choice in choices if isinstance(choice, str)]
        others = [choice for choice in choices if not isinstance(choice, str)]
        ways: list[_Text | _Json] = [_Text(" | ".join(texts))] if texts else []
        ways += [_Json({"enum": others})] if others else []
    elif unions and depth and len(unions) <= _MOST_WAYS:
        ways = [way for branch in unions for way in _ways(branch, root, depth - 1)]
    else:
        ways = [_Text(" & ".join([_ANY_TEXT, *_constraints(schema)]))]
        if others := sorted(types - {"string"}):
            ways.append(_Json({**schema, "type": others}))
    if _Text(_ANY_TEXT) in ways or len(ways) > _MOST_WAYS:
        return [_Text(_ANY_TEXT)]  # any text is taken, JSON of the other types too
    return ways


def _constraints(schema: Mapping[str, Any]) -> list[str]:
    """What a schema demands of a string, as terminals of Lark."""
    found = []
    least, most = (schema.get(key) for key in ("minLength", "maxLength"))
    least, most = (value if isinstance(value, int) and value >= 0 else None for value in (least, most))
    if least or most is not None:
        found.append(f"/(?s:.{{{least or 0},{'' if most is None else most}}})/")
    if isinstance(pattern := schema.get("pattern"), str):
        found.append(f"/{llguidance.regex_to_lark(_whole(pattern), 'dw')}/")
    if isinstance(named := schema.get("format"), str) and named in _FORMATS:
        found.append(f"/{_FORMATS[named]}/")
    return found


_DATE = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt]{_TIME}",
    "uuid": r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "email": r"[A-Za-z0-9.!#$%&'*+=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*",
}
"""Of strings, by RFC 3339, RFC 9562, RFC 2673 and WHATWG's e-mail addresses; others bind nobody, as in JSON Schema."""


def _whole(pattern: str) -> str:
    """A pattern that is looked for anywhere in a text, as one that the whole text must match."""
    parts = []
    for part in _alternatives(pattern):
        begins = part.startswith("^")
        ends = part.endswith("$") and (len(part) - len(part[:-1].rstrip("\\"))) % 2 == 1
        inner = part[begins : len(part) - ends]
        parts.append(("" if begins else "(?s:.*)") + f"({inner})" + ("" if ends else "(?s:.*)"))
    return "|".join(parts)


def _alternatives(pattern: str) -> list[str]:
    """A pattern's alternatives, apart."""
    parts, depth, in_class, escaped = [""], 0, False, False
    for character in pattern:
        if character == "|" and not (escaped or in_class or depth):
            parts.append("")
            continue
        parts[-1] += character
        if escaped or character == "\\":
            escaped = not escaped
        elif in_class:
            in_class = character != "]"
        else:
            in_class = character == "["
            depth += (character == "(") - (character == ")")
    return parts


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _definitions(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What a schema's references point to, for the root of the schema that it becomes a part of."""
    return {name: schema[name] for name in ("$defs", "definitions") if name in schema}


def _regex(pattern: str) -> str:
    """A pattern between the slashes that Lark puts around it."""
    return "/" + pattern.replace("\\/", "/").replace("/", "\\/") + "/"
