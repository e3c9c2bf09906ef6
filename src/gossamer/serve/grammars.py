"""The form that an answer must have, as one grammar in llguidance's variant of Lark.

Both `response_format` and `tool_choice` become a rule for the whole text that the model may write. If the prompt ends
in an open `<think>`, the model reasons freely first, and the rule holds from `</think>` on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance

from gossamer.data.chat.json_schema import accepted_types, resolve
from gossamer.data.chat.template import ToolFormat
from gossamer.infer.request import Grammar, GrammarKind

__all__ = ["CallRules", "call_grammar", "format_grammar"]

# An unsure model writes white space for ever. Indented JSON needs some; the JSON of a call has no choice.
_BOUNDED_SPACE = {"whitespace_pattern": r"[ \n\t]{0,20}"}
_AS_TRAINED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TEXT = r"TEXT: /(?s:.*)/"
_PLAIN = r"PLAIN: /(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/"
_THOUGHT = 'thought[lazy]: TEXT "</think>"\nGAP: /[\\n ]{0,8}/'


@dataclass(frozen=True)
class CallRules:
    """How the model may call tools.

    Attributes:
        tools: the functions that may be called, as in chat/completions
        forced: whether the answer is a call and nothing else
        single: whether there is one call at most
    """

    tools: Sequence[Mapping[str, Any]]
    forced: bool
    single: bool

    @property
    def binding(self) -> bool:
        """Whether the model has to be restricted at all."""
        return self.forced or self.single or any(tool["function"].get("strict") for tool in self.tools)


def format_grammar(kind: GrammarKind, text: str, thinking: bool) -> Grammar | None:
    """Return the grammar of a `response_format`.

    Args:
        kind: what `text` is
        text: a schema, a pattern or a grammar
        thinking: whether the prompt ends in an open `<think>`

    Returns:
        The grammar; None if no reasoning can come before it, as a Lark grammar has a start rule of its own.
    """
    if kind == "json_object":
        kind, text = "json_schema", '{"type": "object"}'
    if kind == "json_schema":
        text = json.dumps({"x-guidance": _BOUNDED_SPACE} | json.loads(text))
    if not thinking:
        return Grammar(kind, text)
    if kind == "lark":
        return None
    answer = _lark_regex(text) if kind == "regex" else f"%json {text}"
    return Grammar("lark", f"start: thought GAP answer\nanswer: {answer}\n{_THOUGHT}\n{_TEXT}\n")


def call_grammar(rules: CallRules, form: ToolFormat, thinking: bool) -> Grammar:
    """Return the grammar of tool calls by `tool_choice` and `strict`, in the model's own format.

    Without `strict`, the arguments of a function may be any object in the format "json", unless the call is forced. In
    the format "xml" they always have the names of the parameters, because the grammar cannot express anything else.

    Args:
        rules: how the model may call tools
        form: how the model writes a call
        thinking: whether the prompt ends in an open `<think>`
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
            arguments = schema if rules.forced or function.get("strict") else {"type": "object"}
            lines.append(f'f{index}: "\\n" %json {json.dumps(_call_schema(function["name"], arguments))} "\\n"')
        else:
            lines += _xml_rules(index, function["name"], schema)
    return Grammar("lark", f"start: {start}\n" + "\n".join(lines) + "\n")


def _call_schema(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a call in the format "json"."""
    return {
        "x-guidance": _AS_TRAINED,
        **_definitions(arguments),
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _xml_rules(index: int, name: str, schema: Mapping[str, Any]) -> list[str]:
    """The rules of one function: its parameters in the order of the schema; optional ones may be missing."""
    required = schema.get("required")
    properties = schema.get("properties")
    sequence, lines = [], []
    for number, (key, value) in enumerate(properties.items() if isinstance(properties, Mapping) else ()):
        rule = f"f{index}_p{number}"
        sequence.append(rule if isinstance(required, list) and key in required else f"{rule}?")
        forms = [_form_rule(f"{rule}_{i}", form, schema) for i, form in enumerate(_value_forms(value, schema))]
        lines.append(f"{rule}: {json.dumps(f'<parameter={key}>' + chr(10))} ({' | '.join(name for name, _ in forms)})")
        lines += [line for _, rules in forms for line in rules]
    begin = json.dumps(f"\n<function={name}>\n")
    return [f'f{index}: {begin} {" ".join(sequence)} "</function>\\n"', *lines]


def _form_rule(rule: str, form: _Text | _Json, root: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The name and the lines of the rule for one form of a value, with the tag that ends it."""
    end = '"\\n</parameter>\\n"'
    if isinstance(form, _Json):
        schema = form.schema
        if isinstance(schema, Mapping):
            schema = {"x-guidance": _AS_TRAINED, **_definitions(root), **schema}
        return rule, [f"{rule}: %json {json.dumps(schema)} {end}"]
    return rule, [f"{rule}[lazy]: {rule.upper()} {end}", f"{rule.upper()}: {form.terminal}"]


@dataclass(frozen=True)
class _Text:
    """A value that is written as plain text and must match the Lark expression `terminal`."""

    terminal: str


@dataclass(frozen=True)
class _Json:
    """A value that is written as JSON."""

    schema: Any


# Any text without the tags that end a value for the reader of the call.
_ANY_TEXT = r"/(?s:.*)/ & ~/(?s:.*)(<\/parameter>|<parameter=)(?s:.*)/"
_MAX_FORMS = 64


def _value_forms(schema: Any, root: Mapping[str, Any], depth: int = 8) -> list[_Text | _Json]:
    """The forms in which the value of a parameter may be written: a string as plain text, everything else as JSON.

    What is a string is decided by `json_schema`, which the reader of calls asks, too: a value whose schema names no
    type is read as text.
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
        forms: list[_Text | _Json] = [_Text(" | ".join(texts))] if texts else []
        forms += [_Json({"enum": others})] if others else []
    elif unions and depth and len(unions) <= _MAX_FORMS:
        forms = [form for branch in unions for form in _value_forms(branch, root, depth - 1)]
    else:
        forms = [_Text(" & ".join([_ANY_TEXT, *_constraints(schema)]))]
        if others := sorted(types - {"string"}):
            forms.append(_Json({**schema, "type": others}))
    if _Text(_ANY_TEXT) in forms or len(forms) > _MAX_FORMS:
        return [_Text(_ANY_TEXT)]  # any text is accepted, which includes JSON of other types
    return forms


def _constraints(schema: Mapping[str, Any]) -> list[str]:
    """What a schema demands of a string, as Lark terminals."""
    found = []
    lengths = (schema.get(key) for key in ("minLength", "maxLength"))
    min_length, max_length = (value if isinstance(value, int) and value >= 0 else None for value in lengths)
    if min_length or max_length is not None:
        found.append(f"/(?s:.{{{min_length or 0},{'' if max_length is None else max_length}}})/")
    if isinstance(pattern := schema.get("pattern"), str):
        found.append(f"/{llguidance.regex_to_lark(_match_whole(pattern), 'dw')}/")
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
"""Formats of strings, by RFC 3339, RFC 9562, RFC 2673 and WHATWG's e-mail addresses; others are ignored."""


def _match_whole(pattern: str) -> str:
    """Turn a pattern that is searched for anywhere in a text into one that the whole text must match."""
    parts = []
    for part in _alternatives(pattern):
        begins = part.startswith("^")
        ends = part.endswith("$") and (len(part) - len(part[:-1].rstrip("\\"))) % 2 == 1
        inner = part[begins : len(part) - ends]
        parts.append(("" if begins else "(?s:.*)") + f"({inner})" + ("" if ends else "(?s:.*)"))
    return "|".join(parts)


def _alternatives(pattern: str) -> list[str]:
    """Split a pattern into its alternatives."""
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
    """The definitions that references of a schema point to, for the root of the schema that it becomes a part of."""
    return {name: schema[name] for name in ("$defs", "definitions") if name in schema}


def _lark_regex(pattern: str) -> str:
    """Write a pattern between slashes, as Lark does."""
    return "/" + pattern.replace("\\/", "/").replace("/", "\\/") + "/"
