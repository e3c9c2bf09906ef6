"""What an answer must look like, as one grammar in llguidance's variant of Lark.

``response_format`` and ``tool_choice`` become the same thing here: a rule for the whole text that the model may write.
Where the prompt ends in an open ``<think>``, the model thinks freely first, and the rule holds from ``</think>`` on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gossamer.infer.request import Grammar, GrammarKind
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
        opening = json.dumps(f"<parameter={key}>\n")
        if isinstance(value, Mapping) and value.get("type") == "string" and value.keys() <= {"type", "description"}:
            lines += [f"{rule}: {opening} {rule}_text", f'{rule}_text[lazy]: TEXT "\\n</parameter>\\n"']
        else:
            lines.append(f'{rule}: {opening} {_value(value, _definitions(schema))} "\\n</parameter>\\n"')
    begin = json.dumps(f"\n<function={name}>\n")
    return [f'f{index}: {begin} {" ".join(sequence)} "</function>\\n"', *lines]


def _definitions(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What a schema's references point to, for the root of the schema that it becomes a part of."""
    return {name: schema[name] for name in ("$defs", "definitions") if name in schema}


def _value(schema: Any, definitions: dict[str, Any]) -> str:
    """A parameter's value: a string without its quotes where the schema lists strings, else JSON."""
    choices = schema.get("enum") if isinstance(schema, Mapping) else None
    if choices and isinstance(choices, list) and all(isinstance(choice, str) for choice in choices):
        return "(" + " | ".join(json.dumps(choice) for choice in choices) + ")"
    whole = {"x-guidance": _AS_TRAINED} | definitions | schema if isinstance(schema, dict) else schema
    return f"%json {json.dumps(whole)}"


def _regex(pattern: str) -> str:
    """A pattern between the slashes that Lark puts around it."""
    return "/" + pattern.replace("\\/", "/").replace("/", "\\/") + "/"
