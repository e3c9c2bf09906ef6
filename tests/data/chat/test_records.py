"""Lines of data: what each form means, how mistakes are named, and files of every kind."""

from __future__ import annotations

import io
import json
import math
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data.chat.forms import FORMS, form_of, read_record
from gossamer.data.chat.records import Completion, Record, Records, read_records
from gossamer.errors import UserError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "b"}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def write(folder: Path, *lines: Any, name: str = "data.jsonl") -> str:
    file = folder / name
    file.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return str(file)


def record_of(values: dict[str, Any], method: str = "auto") -> Record:
    return read_record(form_of("F:1", values, method), "F:1", values, {})


def said(*pairs: tuple[str, str]) -> tuple[dict[str, str], ...]:
    return tuple({"role": role, "content": content} for role, content in pairs)


PROMPT = said(("user", "q"))
A, B = (Completion(said(("assistant", text)), None, (1,)) for text in "ab")


@pytest.mark.parametrize(
    ("values", "messages", "weights"),
    [
        ({"messages": [USER, ANSWER]}, said(("user", "q"), ("assistant", "a")), (0, 1)),
        (
            {"messages": [USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}], "system": "s"},
            said(("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "a")),
            (0, 0, 0, 0, 1),
        ),
        (
            {"messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}, {"text": "y"}]}, ANSWER]},
            said(("system", "xy"), ("assistant", "a")),
            (0, 1),
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            said(("system", "s"), ("user", "q"), ("assistant", "a")),
            (0, 0, 1),
        ),
        (
            {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]], "system": "s"},
            said(("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "i\n\nx"), ("assistant", "o")),
            (0, 0, 1, 0, 1),
        ),
        ({"instruction": "i", "input": "", "output": "o"}, said(("user", "i"), ("assistant", "o")), (0, 1)),
    ],
)
def test_forms_of_conversations(values, messages, weights):
    record = record_of(values)
    assert (record.messages, record.weights, record.completions) == (messages, weights, ())


def test_calls_of_tools_and_reasoning_in_each_form():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    wanted = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "a", "reasoning_content": "r"},
    ]
    for arguments in ({"x": 1}, '{"x": 1}'):
        called = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f"} | {"arguments": arguments}}],
        }
        for name in ("reasoning_content", "reasoning", "thinking"):
            spoken = [USER, called, {"role": "tool", "content": "7"}, ANSWER | {name: "r"}]
            assert list(record_of({"messages": spoken, "tools": [TOOL]}).messages) == wanted
    turns = [("human", "q"), ("function_call", '{"name": "f", "arguments": {"x": 1}}'), ("observation", "7")]
    spoken = [{"from": who, "value": text} for who, text in turns]
    spoken.append({"from": "gpt", "value": "a", "reasoning": "r"})
    for tools in (json.dumps([TOOL["function"]]), [TOOL | {"strict": True}]):
        record = record_of({"conversations": spoken, "tools": tools})
        assert list(record.messages) == wanted and record.tools == (TOOL,)


@pytest.mark.parametrize(
    ("values", "prompt_text", "text", "completions"),
    [
        ({"prompt": "p", "completion": "c"}, "p", None, (Completion(text="c"),)),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "p", None, (Completion(text="c"), Completion(text="r"))),
        (
            {"chosen": "Q: x A: yes", "rejected": "Q: x A: no"},
            "Q: x A:",
            None,
            (Completion(text=" yes"), Completion(text=" no")),
        ),
        ({"text": "t"}, None, "t", ()),
    ],
)
def test_plain_forms(values, prompt_text, text, completions):
    record = record_of(values)
    assert (record.prompt_text, record.text, record.completions) == (prompt_text, text, completions)
    assert record.messages == ()


@pytest.mark.parametrize(
    ("values", "completions", "label"),
    [
        ({"prompt": [USER], "completion": [ANSWER]}, (A,), None),
        ({"prompt": "q", "completion": [ANSWER]}, (A,), None),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}, (A, B), None),
        ({"prompt": [USER], "chosen": ANSWER, "rejected": "b"}, (A, B), None),
        ({"prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, (A, B), None),
        ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, (A, B), None),
        (
            {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [OTHER]},
            (A, B),
            None,
        ),
        ({"messages": [USER, ANSWER], "rejected_response": "b"}, (A, B), None),
        ({"messages": [USER], "completion": "a", "label": True}, (A,), True),
        ({"messages": [USER], "completion": ANSWER, "label": -1, "note": "n", "time": 1}, (A,), False),
        ({"prompt": [USER], "completion": [ANSWER], "label": 1}, (A,), True),
        ({"prompt": [USER], "completion": [ANSWER], "label": 0}, (A,), False),
        ({"messages": [USER, ANSWER], "kto_tag": True}, (A,), True),
        ({"instruction": "q", "output": "a", "kto_tag": False}, (A,), False),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": 1}, (A,), True),
    ],
)
def test_prompts_with_completions(values, completions, label):
    record = record_of(values)
    assert (record.messages, record.completions, record.label) == (PROMPT, completions, label)
    assert record.weights == (0,)


MISTAKES = {
    "no JSON object": ("[1]\n[", "not JSON"),
    "half a line": ('{"text": "a"}\n{"text": \n{"text": "b"}\n', r"data\.jsonl:2: not JSON"),
    "a list for a line": ('{"text": "a"}\n[1]\n', r"data\.jsonl:2: holds no JSON object"),
    "not UTF-8": (b'{"text": "\xff"}\n', r"data\.jsonl:1: not UTF-8"),
    "an empty object": ("{}", r"data\.jsonl:1: the object is empty"),
    "a slip": ('{"mesages": []}', r"data\.jsonl:1: .*mesages.*did you mean 'messages'"),
    "no answer": ('{"prompt": "a"}', r"data\.jsonl:1: .*beside prompt the key completion is missing"),
    "two forms": (json.dumps({"messages": [USER, ANSWER], "text": "a"}), r":1: has the keys of two forms"),
    "two methods": (
        '{"text": "a"}\n{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
        r"data\.jsonl:2: .*are data for dpo, but .*data\.jsonl:1 is data for sft",
    ),
    "no messages": ('{"messages": []}', r":1: messages: is empty"),
    "messages of another type": ('{"messages": "a"}', r":1: messages: must be a list"),
    "no role": ('{"messages": [{"content": "a"}]}', r":1: messages\.0\.role: must be .* not missing"),
    "a wrong role": ('{"messages": [{"role": "asistant"}]}', r"messages\.0\.role: .*did you mean 'assistant'"),
    "a picture": (
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}),
        r":1: messages\.0\.content\.0: only parts of type text",
    ),
    "no text": ('{"messages": [{"role": "user", "content": 7}]}', r"messages\.0\.content: must be a text, not 7"),
    "no target": (json.dumps({"messages": [USER]}), r":1: messages: no message of an assistant is learned from"),
    "weights of zero": (json.dumps({"messages": [USER, ANSWER | {"weight": 0}]}), "no message of an assistant"),
    "a wrong weight": (
        json.dumps({"messages": [USER, ANSWER | {"weight": 2}]}),
        r"messages\.1\.weight: must be 0 or 1",
    ),
    "arguments that are no JSON": (
        json.dumps({"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{x"}]}]}),
        r":1: messages\.1\.tool_calls\.0\.arguments: not JSON",
    ),
    "arguments that are no object": (
        json.dumps({"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]}),
        r":1: messages\.1\.tool_calls\.0\.arguments: must be a JSON object",
    ),
    "calls of a user": (json.dumps({"messages": [USER | {"tool_calls": [1]}, ANSWER]}), r"messages\.0\.tool_calls"),
    "an older call": (json.dumps({"messages": [USER, ANSWER | {"function_call": {}}]}), r"messages\.1\.function_call"),
    "tools that are no JSON": (json.dumps({"messages": [USER, ANSWER], "tools": "[{"}), r":1: tools: not JSON"),
    "a tool without a name": (json.dumps({"messages": [USER, ANSWER], "tools": [{}]}), r"tools\.0\.function\.name"),
    "an unknown speaker": (
        '{"conversations": [{"from": "humen", "value": "a"}]}',
        r"conversations\.0\.from: .*'human'",
    ),
    "a call that is no JSON": (
        '{"conversations": [{"from": "function_call", "value": "f(1)"}]}',
        r"conversations\.0\.value: not JSON",
    ),
    "history that is none": ('{"instruction": "a", "output": "b", "history": [["c"]]}', r"history\.0: must be a list"),
    "an empty text": ('{"text": ""}', r":1: text: is empty"),
    "an empty completion": ('{"prompt": "a", "completion": ""}', r":1: completion: is empty"),
    "equal sides": ('{"prompt": "a", "chosen": "b", "rejected": "b"}', r":1: rejected: equals chosen"),
    "equal transcripts": (
        json.dumps({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}),
        "rejected: equals chosen",
    ),
    "nothing in common": (json.dumps({"chosen": [ANSWER], "rejected": [OTHER]}), r":1: chosen: has no beginning"),
    "users who part": (
        json.dumps({"chosen": [USER, ANSWER], "rejected": [USER, USER, ANSWER]}),
        r":1: rejected\.1: chosen and rejected part here",
    ),
    "a label of its own": ('{"prompt": "a", "completion": "b", "label": "good"}', r":1: label: must be true, false"),
    "no rating": (json.dumps({"messages": [USER], "completion": "a"}), r":1: label: is missing beside messages"),
    "a completion of weight zero": (
        json.dumps({"prompt": [USER], "completion": [ANSWER | {"weight": 0}]}),
        r":1: completion: no message of an assistant is learned from",
    ),
    "two systems": (
        json.dumps({"messages": [{"role": "system", "content": "a"}, ANSWER], "system": "b"}),
        ":1: system:",
    ),
    "nothing": ("\n\n", "is empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_its_place_and_key(tmp_path, name):
    text, message = MISTAKES[name]
    file = tmp_path / "data.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as refusal:
        read_records([str(file)])
    assert "\n" not in str(refusal.value) and "data.jsonl" in str(refusal.value)


def test_data_of_another_method_is_refused(tmp_path):
    sft, rated = (
        write(tmp_path, {"text": "a"}),
        write(tmp_path, {"prompt": "a", "completion": "b", "label": 1}, name="k"),
    )
    for method, file in (("dpo", sft), ("kto", sft), ("sft", rated)):
        with pytest.raises(UserError, match=rf"these keys are data for \w+, not for {method}"):
            read_records([file], method=method)


def test_a_method_decides_between_two_forms():
    values = {"messages": [USER, ANSWER], "prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}
    assert record_of(values, "sft").weights == (0, 1)
    assert record_of(values, "dpo").completions == (A, B)


# Files.


def summary(records: Records) -> list[str | None]:
    return [record.text for record in records.records]


def test_files_of_every_kind(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    lines = [{"text": "a"}, {"text": "b", "messages": None, "id": 1}]
    write(tmp_path, *lines, name="1.jsonl")
    write(tmp_path, json.dumps(lines, indent=1), name="2.json")
    write(tmp_path, json.dumps(lines[0], indent=1), name="3.json")
    write(tmp_path, *lines, name="4.json")
    parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / "5.parquet")
    write(tmp_path, "prose", name="readme.md")
    records = read_records([str(tmp_path)])
    assert summary(records) == ["a", "b", "a", "b", "a", "a", "b", "a", "b"]
    assert [record.where.removeprefix(str(tmp_path)) for record in records.records][1:5] == [
        "/1.jsonl:2",
        "/2.json, item 1",
        "/2.json, item 2",
        "/3.json:1",
    ]
    assert records.num_equal == 7 and records.ignored_keys == ("id",)
    assert "left out 1 files" in records.notices[0]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"text": "a"}\n\n{"text": "b"}')))
    records = read_records(["-"])
    assert summary(records) == ["a", "b"] and records.records[1].where == "-:3"


def test_nulls_of_a_table_are_left_out_at_every_depth(tmp_path):
    import pyarrow
    from pyarrow import parquet

    call = {"function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    (record,) = read_records([str(tmp_path / "a.parquet")]).records
    assert record.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    line = write(tmp_path, row)  # in JSON a null is an argument
    assert read_records([line]).records[0].messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": 1, "y": None}


def test_what_json_cannot_hold_is_refused_in_a_table(tmp_path):
    import pyarrow
    from pyarrow import parquet

    for wrong in (datetime.now(), b"x", math.nan):
        row = {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": wrong}}]}]}
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=r"row 1: messages\.1\.tool_calls\.0\.arguments: holds what JSON cannot"):
            read_records([str(tmp_path / "a.parquet")])


def test_a_data_set_of_the_hub_keeps_whole_records(tmp_path, monkeypatch):
    rows = [{"messages": [USER, ANSWER], "picture": object(), "id": None}]
    library = SimpleNamespace(load_dataset=lambda *_, **__: rows)
    monkeypatch.setitem(sys.modules, "datasets", library)
    records = read_records(["hf:org/name"], cache=tmp_path)
    assert records.records[0].messages == said(("user", "q"), ("assistant", "a")) and not records.ignored_keys


def test_a_folder_or_table_without_conversations(tmp_path):
    write(tmp_path, "prose", name="a.txt")
    with pytest.raises(UserError, match="no JSONL, JSON or Parquet file"):
        read_records([str(tmp_path)])
    with pytest.raises(UserError, match="write it as JSONL"):
        read_records([write(tmp_path, "a,b\n", name="a.csv")])
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"a\.parquet: not a complete Parquet file"):
        read_records([str(tmp_path / "a.parquet")])


@pytest.mark.parametrize("rest", ['{"text": "c', '{"text": "ä'.encode()[:-1], b"{"])
def test_a_file_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path, rest):
    file = tmp_path / "ratings.jsonl"
    file.write_bytes(b'{"text": "a"}\n{"text": "b"}\n' + (rest if isinstance(rest, bytes) else rest.encode()))
    records = read_records([str(file)])
    assert summary(records) == ["a", "b"]
    assert "ratings.jsonl:3: the last line is not finished" in records.notices[0]
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(UserError, match=r"ratings\.jsonl:3: not"):
        read_records([str(file)])


def test_a_whole_line_needs_no_line_end(tmp_path):
    assert summary(read_records([write(tmp_path, '{"text": "a"}\n{"text": "b"}')])) == ["a", "b"]


# Ratings as pairs.


def rated(question: str, answer: str, label: bool) -> dict[str, Any]:
    return {"messages": [USER | {"content": question}], "completion": answer, "label": label, "model": "m"}


def test_the_last_rating_of_an_answer_counts(tmp_path):
    def line(rating_id, label, note=""):
        return {"messages": [USER], "completion": [ANSWER], "label": label, "note": note, "rating_id": rating_id}

    lines = [line("x", True), line("y", True), line("x", False), line("z", True), line("y", None), line("w", None)]
    file = write(tmp_path, *lines, {"messages": [USER], "completion": "b", "label": True})
    records = read_records([file])
    assert [(record.where, record.label) for record in records.records] == [
        (f"{file}:3", False), (f"{file}:4", True), (f"{file}:7", True)
    ]  # fmt: skip
    assert records.notices == ("4 lines are ratings that were changed or taken back later",)
    assert not records.ignored_keys
    with pytest.raises(UserError, match="no line to learn from"):
        read_records([write(tmp_path, line("x", True), line("x", None), name="none.jsonl")])


def test_ratings_of_empty_answers_are_left_out_and_one_side_alone_is_said(tmp_path):
    def line(text, label):
        return {"messages": [USER], "completion": [{"role": "assistant", "content": text}], "label": label}

    file = write(tmp_path, line("", True), line("a", True), line(" \n", False), line("b", True))
    records = read_records([file])
    assert [record.where for record in records.records] == [f"{file}:2", f"{file}:4"]
    assert records.notices == (
        "2 ratings of empty answers were left out",
        "all ratings are good: without a bad answer the model is told one side alone",
    )
    with pytest.raises(UserError, match=r"none\.jsonl:1: every rated answer is empty"):
        read_records([write(tmp_path, line("", True), name="none.jsonl")])


def test_ratings_of_one_prompt_become_pairs(tmp_path):
    lines = [rated("q", "a", True), rated("r", "a", True), rated("q", "b", False), rated("q", "a", False)]
    file = write(tmp_path, *lines, rated("q", "c", False))
    records = read_records([file], method="dpo")
    assert records.method == "dpo"
    texts = [tuple(one.messages[0]["content"] for one in record.completions) for record in records.records]
    assert texts == [("a", "b"), ("a", "c")] and {record.label for record in records.records} == {None}
    assert records.notices == ("1 of 5 ratings are of prompts without a pair",)
    assert read_records([file]).method == "kto"
    with pytest.raises(UserError, match="no prompt has a good and a bad answer"):
        read_records([write(tmp_path, rated("q", "a", True), name="one")], method="dpo")


# Anything at all.

KEYS = sorted({key for form in FORMS for key in (*form.keys, *form.more)})
MESSAGE_KEYS = ["role", "content", "tool_calls", "weight", "from", "value", "name", "function", "arguments", "text"]
leaves = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3) | st.sampled_from(["user", "assistant", "{}"])
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MESSAGE_KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYS), anything, max_size=5))
def test_whatever_a_line_holds_it_is_read_or_refused_in_one_line(values):
    present = {key: value for key, value in values.items() if value is not None}
    try:
        record = record_of(present)
    except UserError as error:
        assert str(error).startswith("F:1: ") and "\n" not in str(error)
    else:
        assert len(record.weights) == len(record.messages)
        assert any(record.weights) or record.completions or record.text


lines_of_bytes = st.lists(
    st.binary(max_size=12)
    | st.sampled_from(
        [b'{"text": "a"}', b'{"text": "', b"[", b"]", b'[{"text": "a"}]', b"\xef\xbb\xbf{}", b'{"text": NaN}']
    )
    | st.dictionaries(st.sampled_from(["text", "prompt", "completion", "id"]), st.text(max_size=3)).map(
        lambda one: json.dumps(one).encode()
    ),
    max_size=5,
)


@given(
    lines_of_bytes,
    st.sampled_from([b"\n", b"\r\n", b""]),
    st.sampled_from([".jsonl", ".json", ".txt", ".parquet", ".csv"]),
)
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(tmp_path_factory, lines, end, suffix):
    file = tmp_path_factory.mktemp("any") / f"data{suffix}"
    file.write_bytes((end or b"\n").join(lines) + end)
    try:
        records = read_records([str(file)])
    except UserError as error:
        assert "\n" not in str(error) and f"data{suffix}" in str(error)
    else:
        assert records.records
