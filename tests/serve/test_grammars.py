"""Grammars: llguidance accepts what the model's format allows, whole and nothing else."""

from __future__ import annotations

import json

import jsonschema_rs
import llguidance
import pytest

from gossamer.data.chat.tool_calls import ArgumentsText, XmlCall
from gossamer.data.tokenizer import Tokenizer
from gossamer.serve.grammars import CallRules, call_grammar, format_grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer"},
    },
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str, **more: object) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def takes(tokenizer):
    core = llguidance.LLTokenizer(tokenizer._core.to_str(), eos_token=tokenizer.eot_id)

    def whole(grammar, text: str) -> bool:
        make = {
            "lark": llguidance.LLMatcher.grammar_from_lark,
            "regex": llguidance.LLMatcher.grammar_from_regex,
            "json_schema": llguidance.LLMatcher.grammar_from_json_schema,
        }[grammar.kind]
        matcher = llguidance.LLMatcher(core, make(grammar.text))
        assert not matcher.is_error(), matcher.get_error()
        ids = tokenizer.encode(text)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return whole


def as_json(name="weather", **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def as_xml(name="weather", **arguments):
    lines = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{lines}</function>\n</tool_call>"


FORMS = [("json", as_json), ("xml", as_xml)]


@pytest.mark.parametrize(("form", "call"), FORMS)
def test_a_forced_call(takes, form, call):
    grammar = call_grammar(CallRules([tool("weather"), tool("time")], forced=True, single=False), form, False)
    assert takes(grammar, call(city="Oslo\nnorth"))
    assert takes(grammar, call(city="Oslo", unit="C", days=3) + "\n" + call("time", city="</p>"))
    for wrong in (
        "",
        "Hello",
        call("rain", city="Oslo"),
        call(days=3),
        call(city="Oslo", days="x"),
        call(city="a") + "!",
    ):
        assert not takes(grammar, wrong), wrong
    assert not takes(grammar, call(city="Oslo", unit="K"))


@pytest.mark.parametrize(("form", "call"), FORMS)
def test_a_forced_single_call_after_a_thought(takes, form, call):
    grammar = call_grammar(CallRules([tool("weather")], forced=True, single=True), form, True)
    assert takes(grammar, "I think <tool_call> so.\n</think>\n\n" + call(city="Oslo"))
    assert not takes(grammar, call(city="Oslo"))
    assert not takes(grammar, "</think>" + call(city="a") + "\n" + call(city="b"))


@pytest.mark.parametrize(("form", "call"), FORMS)
def test_free_text_with_strict_calls(takes, form, call):
    rules = CallRules([tool("weather", strict=True)], forced=False, single=False)
    assert rules.binding
    grammar = call_grammar(rules, form, False)
    assert takes(grammar, "No call <b>, just text.")
    assert takes(grammar, "Let me see.\n" + call(city="a") + "\n" + call(city="b"))
    assert not takes(grammar, "Let me see. " + call(city="a", days="x"))
    assert not takes(grammar, call("rain", city="a"))


@pytest.mark.parametrize(("form", "call"), FORMS)
def test_one_call_at_most(takes, form, call):
    grammar = call_grammar(CallRules([tool("weather")], forced=False, single=True), form, False)
    assert takes(grammar, "text") and takes(grammar, "text " + call(city="a"))
    assert not takes(grammar, call(city="a") + "\n" + call(city="b"))


@pytest.mark.parametrize("form", ["json", "xml"])
@pytest.mark.parametrize("schema", [{"required": 5}, {"properties": 5}, {"properties": {"a": 5, "b": {"enum": 5}}}])
def test_a_schema_that_is_none_makes_a_grammar_that_the_engine_can_refuse(form, schema):
    named = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert call_grammar(CallRules([named], forced=True, single=True), form, False).kind == "lark"


ROOT = {"$defs": {"S": {"type": "string"}, "Unit": {"enum": ["C", "F"], "type": "string"}}}
# A parameter's schema, values that it takes as a model of the family writes them (Qwen's template: strings bare, the
# rest as JSON) and as the client is to get them, and texts that it does not take.
PARAMETERS = [
    ({"type": "string"}, {"Rome": "Rome", 'a "b" \\': 'a "b" \\', "": "", "two\nlines": "two\nlines", "5": "5"}, []),
    ({"type": "string", "title": "City", "default": "Oslo", "examples": ["x"]}, {"Rome": "Rome"}, []),
    ({"type": "string", "minLength": 2, "maxLength": 4}, {"Rome": "Rome", "é\nü": "é\nü"}, ["R", "Romes", ""]),
    ({"type": "string", "pattern": "^[A-Z][a-z]+$"}, {"Rome": "Rome"}, ["rome", "Rome1", '"Rome"']),
    ({"type": "string", "pattern": "b"}, {"abc": "abc"}, ["ac"]),
    ({"type": "string", "pattern": "^a|b$"}, {"ax": "ax", "xb": "xb"}, ["xa"]),
    ({"type": "string", "pattern": r"\d/\d"}, {"1/2": "1/2"}, ["1-2"]),
    ({"type": "string", "format": "date"}, {"2026-11-27": "2026-11-27"}, ["2026-13-27", "today"]),
    ({"type": "string", "format": "uuid"}, {"6ba7b810-9dad-11d1-80b4-00c04fd430c8": None}, ["6ba7b810"]),
    ({"const": "Rome"}, {"Rome": "Rome"}, ["Oslo", '"Rome"']),
    ({"type": "string", "enum": ["Rome", "São\tPaulo"]}, {"Rome": "Rome", "São\tPaulo": "São\tPaulo"}, ["Oslo"]),
    ({"enum": ["a", 5, None]}, {"a": "a", "5": 5, "null": None}, ["b", "6"]),
    ({"$ref": "#/$defs/S"}, {"Rome": "Rome"}, []),
    ({"$ref": "#/$defs/Unit", "description": "d"}, {"C": "C"}, ["K"]),
    ({"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}, {"Rome": "Rome", "null": None}, []),
    ({"type": ["string", "null"]}, {"Rome": "Rome", "null": None}, []),
    ({"anyOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}]}, {"C": "C", "null": None}, ["K", "5"]),
    ({"anyOf": [{"type": "string", "pattern": "^[a-z]+$"}, {"type": "integer"}]}, {"ab": "ab", "5": 5}, ["A", "1.5"]),
    ({"allOf": [{"$ref": "#/$defs/S"}]}, {"Rome": "Rome"}, []),
    ({}, {"anything": "anything", "5": "5"}, []),
    ({"type": "integer", "minimum": 3}, {"5": 5}, ["2", "five", '"5"']),
    ({"type": "array", "items": {"$ref": "#/$defs/Unit"}}, {'["C", "F"]': ["C", "F"]}, ["C"]),
    ({"type": "object", "properties": {"a": {"type": "string"}}}, {'{"a": "b"}': {"a": "b"}}, ["a"]),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), PARAMETERS, ids=[str(case[0]) for case in PARAMETERS])
def test_what_a_forced_xml_call_may_say_is_read_as_a_value_of_its_schema(takes, schema, right, wrong):
    parameters = {"type": "object", "properties": {"city": schema}, "required": ["city"], **ROOT}
    named = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    grammar = call_grammar(CallRules([named], forced=True, single=True), "xml", False)
    for text, value in right.items():
        assert takes(grammar, as_xml(city=text)), text
        reader = XmlCall({"weather": parameters})
        pieces = reader.push(as_xml(city=text).removeprefix("<tool_call>"))
        told = "".join(piece.text for piece in pieces if isinstance(piece, ArgumentsText))
        found = json.loads(told)
        assert found == {"city": text if value is None and text != "null" else value}
        jsonschema_rs.Draft202012Validator(parameters, validate_formats=True).validate(found)
    for text in wrong:
        assert not takes(grammar, as_xml(city=text)), text


@pytest.mark.parametrize(("form", "call"), FORMS)
def test_references_within_the_parameters_are_followed(takes, form, call):
    schema = {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "$defs": {"N": {"enum": [1, 2]}}}
    named = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    grammar = call_grammar(CallRules([named], forced=True, single=True), form, False)
    assert takes(grammar, call(n=2)) and not takes(grammar, call(n=3))


def test_without_strict_the_arguments_of_a_free_call_are_any_object(takes):
    grammar = call_grammar(CallRules([tool("weather")], forced=False, single=True), "json", False)
    assert takes(grammar, as_json(anything=1))


def test_nothing_binds_free_calls():
    assert not CallRules([tool("weather")], forced=False, single=False).binding


@pytest.mark.parametrize(
    ("kind", "text", "right", "wrong"),
    [
        ("json_schema", json.dumps(SCHEMA), '{"city":"a"}', '{"days":1}'),
        ("json_object", "", '{"x": [1]}', "[1]"),
        ("regex", r"\d+/\d+", "12/5", "12:5"),
    ],
)
def test_a_format_after_a_thought(takes, kind, text, right, wrong):
    grammar = format_grammar(kind, text, thinking=True)
    assert grammar is not None
    assert takes(grammar, "Well {...}\n</think>\n\n" + right)
    assert not takes(grammar, "Well\n</think>\n\n" + wrong)
    assert not takes(grammar, right)


@pytest.mark.parametrize("thinking", [False, True])
def test_json_may_be_indented_and_its_white_space_ends(takes, thinking):
    grammar = format_grammar("json_schema", json.dumps(SCHEMA), thinking)
    thought = "</think>" * thinking
    value = {"city": "a  b", "days": 3}
    for indent in (None, 2, 4):
        assert takes(grammar, thought + json.dumps(value, indent=indent))
    assert not takes(grammar, thought + '{"city":' + " " * 40 + '"a"}')


def test_a_format_without_a_thought_is_the_engines(takes):
    grammar = format_grammar("regex", "[a-c]+", thinking=False)
    assert (grammar.kind, grammar.text) == ("regex", "[a-c]+")


def test_a_grammar_of_its_own_cannot_follow_a_thought():
    assert format_grammar("lark", "start: /a/", thinking=True) is None
