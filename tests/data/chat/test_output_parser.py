"""A model's text in pieces: reasoning, content and calls are those that transformers finds in the whole."""

from __future__ import annotations

import itertools
import json
import time
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_parsing import ResponseParser

from gossamer.data.chat.output_parser import CallArguments, CallBegins, Content, OutputParser, Reasoning
from gossamer.data.chat.tool_calls import JsonCall, XmlCall, coerce, partial_suffix

THOUGHT = {"open": "<think>", "close": "</think>", "content": "text"}
CALL: dict[str, Any] = {"open": "<tool_call>", "close": "</tool_call>", "repeats": True}
JSON_FORMAT = {
    "start_anchor": "assistant\n",
    "fields": {
        "reasoning": THOUGHT,
        "calls": CALL | {"content": "json", "transform": {"function": "{content}"}},
        "content": {"content": "text", "repeats": True, "join": ""},
    },
}
XML_FORMAT = {
    "start_anchor": "assistant\n",
    "fields": {
        "reasoning": THOUGHT,
        "calls": CALL
        | {
            "open_pattern": r"<tool_call>\s*<function=(?P<name>[^>]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n(?P<value>.*?)\n</parameter>"},
            "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"content": "text", "repeats": True, "join": ""},
    },
}
del XML_FORMAT["fields"]["calls"]["open"], XML_FORMAT["fields"]["calls"]["close"]

SCHEMAS = {
    "find": {
        "properties": {
            "text": {"type": "string"},
            "count": {"type": "integer"},
            "share": {"type": "number"},
            "sure": {"type": "boolean"},
            "more": {"type": "object"},
            "list": {"type": "array"},
        }
    }
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]

prose = st.text(st.sampled_from("ab<>/ \n{}\"'\\é"), max_size=20).filter(lambda text: "<t" not in text)
words = st.text(st.sampled_from('ab<>/ \n{}[]"\\:,é'), max_size=12).filter(lambda text: "</" not in text)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "text": words,
        "count": st.integers(),
        "share": st.floats(allow_nan=False, allow_infinity=False),
        "sure": st.booleans(),
        "more": st.dictionaries(words, values, max_size=2),
        "list": st.lists(values, max_size=3),
    },
)


def message(text: str, cuts: list[int], **parser: Any) -> dict[str, Any]:
    """What the parser makes of `text`, cut at these places, put together; calls with the text of their arguments."""
    made = OutputParser(**parser)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    found = [event for begin, end in itertools.pairwise(places) for event in made.push(text[begin:end])]
    reasoning = content = ""
    calls: list[list[str]] = []
    for event in found + made.finish():
        match event:
            case Reasoning(piece):
                reasoning += piece
            case Content(piece):
                content += piece
            case CallBegins(index, name):
                assert index == len(calls)
                calls.append([name, ""])
            case CallArguments(index, piece):
                assert index == len(calls) - 1
                calls[index][1] += piece
    return {"reasoning": reasoning, "content": content, "calls": calls}


def events(text: str, cuts: list[int], **parser: Any) -> dict[str, Any]:
    """The same with the arguments' values."""
    found = message(text, cuts, **parser)
    return found | {"calls": [(name, json.loads(text)) for name, text in found["calls"]]}


def by_oracle(form: dict[str, Any], prefix: str, text: str, tools: Any = None) -> dict[str, Any]:
    parser = ResponseParser(form, prefix=prefix, tools=tools)
    parser.feed(text)
    message, _ = parser.finalize()
    functions = [call["function"] for call in message.get("calls", [])]
    calls = [(function["name"], function["arguments"]) for function in functions]
    return {"reasoning": message.get("reasoning", ""), "content": message.get("content", ""), "calls": calls}


def as_xml(name: str, given: dict[str, Any]) -> str:
    lines = [f"<tool_call>\n<function={name}>"]
    for key, value in given.items():
        lines.append(f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>")
    return "\n".join([*lines, "</function>\n</tool_call>"])


cuts = st.lists(st.integers(0, 10_000), max_size=40)


@given(prose, prose, st.booleans(), st.lists(arguments, max_size=3), cuts)
def test_json_calls_are_the_oracles(thought, said, opened, given_arguments, cuts):
    calls = [
        f"<tool_call>\n{json.dumps({'name': 'find', 'arguments': item}, ensure_ascii=False)}\n</tool_call>"
        for item in given_arguments
    ]
    text = ("" if opened else "<think>") + f"{thought}</think>" + "\n".join([said, *calls])
    found = events(text, cuts, thinking=opened, thinks=True, reader=JsonCall)
    oracle = by_oracle(JSON_FORMAT, "assistant\n" + "<think>" * opened, text)
    assert found | {"content": found["content"].strip()} == oracle
    assert found["calls"] == [("find", item) for item in given_arguments]


@given(prose, st.lists(arguments, max_size=3), cuts)
def test_xml_calls_are_the_oracles(said, given_arguments, cuts):
    text = "\n".join([said, *(as_xml("find", item) for item in given_arguments)])
    found = events(text, cuts, thinking=False, thinks=True, reader=partial(XmlCall, SCHEMAS))
    oracle = by_oracle(XML_FORMAT, "assistant\n", text, TOOLS)
    assert found | {"content": found["content"].strip()} == oracle
    assert found["calls"] == [("find", item) for item in given_arguments]


@given(st.text(st.sampled_from("<tool_cal>/think \nab{"), max_size=40), cuts, st.booleans(), st.booleans())
def test_however_it_is_cut_nothing_changes(text, cuts, thinking, tools):
    parser = {"thinking": thinking, "thinks": True, "reader": JsonCall if tools else None}
    assert events(text, cuts, **parser) == events(text, [], **parser) == events(text, list(range(41)), **parser)


def joined(pieces: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), max_size=25).map("".join)


TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_", "</", "<", " ", "\n", "a", "b>"]
JSON_PIECES = [
    *TAGS,
    '{"name": "find", "arguments": ',
    '{"name": ',
    '"arguments": ',
    '"find"',
    '"',
    "\\",
    "[",
    "]",
    "{",
    "}",
]
JSON_PIECES += [",", ":", "1", "null", '"text"', '{"text": "', '"}}', "\t"]
XML_PIECES = [*TAGS, "<function=find>", "<function=", "</function>", "<parameter=text>", "<parameter=count>"]
XML_PIECES += ["<parameter=unknown>", "<parameter=", "</parameter>", "</param", "5", '"', "[1]", "null"]


@pytest.mark.parametrize("form", ["json", "xml"])
@given(data=st.data(), cuts=cuts, thinking=st.booleans())
def test_calls_are_the_same_however_the_text_is_cut(form, data, cuts, thinking):
    reader = JsonCall if form == "json" else partial(XmlCall, SCHEMAS)
    text = data.draw(joined(JSON_PIECES if form == "json" else XML_PIECES))
    parser = {"thinking": thinking, "thinks": True, "reader": reader}
    whole = message(text, [], **parser)
    assert message(text, cuts, **parser) == whole == message(text, list(range(len(text))), **parser)


tagged = joined([*XML_PIECES, '{"name": "find"}', "\\", "é"])


@given(st.dictionaries(st.sampled_from(["text", "more"]), tagged), cuts)
def test_tags_within_a_json_string_are_a_part_of_it(given_arguments, cuts):
    call = json.dumps({"name": "find", "arguments": given_arguments}, ensure_ascii=False)
    found = events(f"<tool_call>\n{call}\n</tool_call>\nDone.", cuts, thinking=False, thinks=True, reader=JsonCall)
    assert found == {"reasoning": "", "content": "Done.", "calls": [("find", given_arguments)]}


inner = joined(["</tool_call>", "</function>", "<parameter=unknown>", "a", " ", "<", "é", '"'])


@given(inner, st.integers(), cuts)
def test_tags_within_an_xml_string_are_a_part_of_it(text, count, cuts):
    call = as_xml("find", {"text": text, "count": count})
    found = events(f"{call}\nDone.", cuts, thinking=False, thinks=True, reader=partial(XmlCall, SCHEMAS))
    assert found == {"reasoning": "", "content": "Done.", "calls": [("find", {"text": text, "count": count})]}


flat = st.text(st.sampled_from('ab \n{}[":,é'), max_size=12).map(str.strip)


@given(flat, st.integers(), st.tuples(*[st.booleans()] * 5), st.integers(1, 2), cuts)
def test_closing_tags_and_line_ends_that_are_forgotten_change_no_value(text, count, kept, times, cuts):
    ends = ["</parameter>" * kept[0], "</parameter>" * kept[1], "</function>" * kept[2]]
    line = "\n" * kept[3]
    call = (
        f"<tool_call>{line}<function=find>{line}<parameter=text>{line}{text}{line}{ends[0]}"
        f"{line if kept[0] else ''}<parameter=count>{line}{count}{line}{ends[1]}{line}{ends[2]}{line}</tool_call>"
    )
    found = events(call * times, cuts, thinking=False, thinks=True, reader=partial(XmlCall, SCHEMAS))
    assert found["calls"] == [("find", {"text": text, "count": count})] * times and not found["content"].strip()


@given(st.lists(arguments, min_size=1, max_size=3), st.sampled_from(["array", "row"]), cuts)
def test_several_calls_between_one_pair_of_tags(given_arguments, how, cuts):
    calls = [json.dumps({"name": "find", "arguments": item}) for item in given_arguments]
    inner = f"[{', '.join(calls)}]" if how == "array" else "\n".join(calls)
    found = events(f"<tool_call>{inner}</tool_call>", cuts, thinking=False, thinks=True, reader=JsonCall)
    assert found == {"reasoning": "", "content": "", "calls": [("find", item) for item in given_arguments]}


def test_several_functions_between_one_pair_of_tags():
    text = "<tool_call><function=find><parameter=count>1</parameter></function><function=find></function></tool_call>"
    found = events(text, [], thinking=False, thinks=True, reader=partial(XmlCall, SCHEMAS))
    assert found["calls"] == [("find", {"count": 1}), ("find", {})]


@given(prose, arguments, st.booleans(), st.booleans(), cuts)
def test_a_call_ends_a_thought_that_was_not_closed(thought, given_arguments, xml, closed, cuts):
    call = (
        as_xml("find", given_arguments)
        if xml
        else f'<tool_call>{{"name": "find", "arguments": {json.dumps(given_arguments)}}}</tool_call>'
    )
    text = f"{thought}{call}" + "\n</think>\n\nDone." * closed
    reader = partial(XmlCall, SCHEMAS) if xml else JsonCall
    found = events(text, cuts, thinking=True, thinks=True, reader=reader)
    assert found["reasoning"] == thought.strip() and found["calls"] == [("find", given_arguments)]
    assert found["content"] == "Done." * closed


@pytest.mark.parametrize("inside", ["a <tool_call> b", "a <tool_call>{}</tool_call> b", "a\n<tool_call>"])
def test_a_thought_about_the_tag_stays_a_thought(inside):
    found = events(f"{inside}\n</think>\nDone.", [], thinking=True, thinks=True, reader=JsonCall)
    assert found == {"reasoning": inside, "content": "Done.", "calls": []}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('{"name": "f"}', "{}"),
        ('{"name": "f", "arguments": null}', "{}"),
        ('{"name": "f", "arguments": ""}', "{}"),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"arguments": "{\\"a\\": 1}", "name": "f"}', '{"a": 1}'),
        ('{"name": "f", "arguments": {"a": "x\ny\tz"}}', '{"a": "x\\ny\\tz"}'),
        ('{"name": "f", "arguments": {"a": 1}, "arguments": {"a": 2}}', '{"a": 1}'),
        ('{"name": "f", "arguments": {"a": [1, {"b": "}"}]}, "id": 7}', '{"a": [1, {"b": "}"}]}'),
    ],
)
def test_arguments_are_a_json_object_however_the_model_writes_them(written, value):
    for places in ([], list(range(100))):
        found = message(f"<tool_call>{written}</tool_call>", places, thinking=False, thinks=False, reader=JsonCall)
        assert found["calls"] == [["f", value]] and isinstance(json.loads(value), dict)


def test_of_several_calls_one_that_cannot_be_read_comes_back_as_written():
    text = '<tool_call>[{"name": "f"}, {"nam": "g"}]</tool_call>'
    assert events(text, [], thinking=False, thinks=False, reader=JsonCall) == {
        "reasoning": "",
        "content": '{"nam": "g"}',
        "calls": [("f", {})],
    }


def test_a_long_value_is_read_in_linear_time():
    text = "<tool_call><function=find><parameter=more>" + "x" * 100_000 + "</parameter></function></tool_call>"
    began = time.process_time()
    found = events(text, list(range(0, len(text), 4)), thinking=False, thinks=True, reader=partial(XmlCall, SCHEMAS))
    assert found["calls"] == [("find", {"more": "x" * 100_000})] and time.process_time() - began < 4


@given(st.text(), cuts)
def test_without_tools_and_thoughts_the_text_is_the_content(text, cuts):
    assert events(text, cuts, thinking=False, thinks=False, reader=None)["content"] == text


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a <tool_call>oops</tool_call> b", "a <tool_call>oops</tool_call> b"),
        ('<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>'),
        ("<tool_call>[1]", "<tool_call>[1]"),
        ("ends in <tool_", "ends in <tool_"),
    ],
)
def test_what_is_no_call_stays_content(text, content):
    assert events(text, [], thinking=False, thinks=False, reader=JsonCall) == {
        "reasoning": "",
        "content": content,
        "calls": [],
    }


def test_white_space_at_the_beginning_is_left_out_on_demand():
    parser = OutputParser(False, False, None, trim=True)
    assert parser.push(" \n") == [] and parser.push(" a ") == [Content("a ")] and parser.push(" b") == [Content(" b")]


def test_the_name_is_told_before_the_arguments_are_complete():
    parser = OutputParser(False, False, JsonCall)
    assert parser.push('<tool_call>\n{"name": "find", "argu') == [CallBegins(0, "find")]
    assert parser.push('ments": {"te') == [CallArguments(0, '{"te')]
    assert parser.push('xt": "a') == [CallArguments(0, 'xt": "a')]


def test_arguments_before_the_name_wait_for_it():
    parser = OutputParser(False, False, JsonCall)
    assert parser.push('<tool_call>{"arguments": {"a": 1}, ') == []
    assert parser.push('"name": "f"}') == [CallBegins(0, "f"), CallArguments(0, '{"a": 1}')]


def test_a_string_parameter_is_told_as_it_is_written():
    parser = OutputParser(False, False, partial(XmlCall, SCHEMAS))
    parser.push("<tool_call>\n<function=find>\n<parameter=text>\n")
    assert parser.push('two "words" and') == [CallArguments(0, 'two \\"words\\" and')]


def test_a_call_that_is_cut_short_keeps_what_was_told():
    parser = OutputParser(False, False, JsonCall)
    told = parser.push('<tool_call>\n{"name": "find", "arguments": {"text": "a') + parser.finish()
    assert told == [CallBegins(0, "find"), CallArguments(0, '{"text": "a')]


@pytest.mark.parametrize(
    ("raw", "schema", "value"),
    [
        ("5", {"type": "integer"}, 5),
        ("5.0", {"type": "integer"}, 5),
        ("5", {"type": "string"}, "5"),
        ("five", {"type": "integer"}, "five"),
        ("True", {"type": "boolean"}, True),
        ("None", {"type": ["string", "null"]}, None),
        ("null", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ("NaN", {"type": "number"}, "NaN"),
        ("[1]", {}, "[1]"),
        ("1", {"type": 5, "anyOf": 5}, "1"),
        ("[" * 100_000, {"type": "array"}, "[" * 100_000),
    ],
)
def test_a_parameter_becomes_the_type_that_its_schema_says(raw, schema, value):
    assert coerce(raw, schema) == value


@given(st.text(st.sampled_from("ab"), max_size=9), st.text(st.sampled_from("ab"), min_size=1, max_size=5))
def test_partial_suffix_is_the_longest_beginning_of_the_tag(text, tag):
    sizes = [size for size in range(len(tag)) if text.endswith(tag[:size])]
    assert partial_suffix(text, tag) == max(sizes)
