"""Conversations as hypothesis makes them: roles, parts of text, reasoning, calls and results, tags in what is said."""

from __future__ import annotations

from itertools import chain

from hypothesis import strategies as st

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": None}},
    "required": ["city"],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": 'of "<city>" & 天気', "parameters": PARAMETERS},
    },
    {"type": "function", "function": {"name": "now"}},
]

WORDS = [" ", "\n", "a", "12", "天気 🦊", "e\u0301", "हिन्दी", "<b>&'\"", "{{ 7 }}"]
TAGS = ["<think>", "</think>", "<tool_call>", "<tool_response>", "</tool_response>"]
spoken = st.lists(st.sampled_from([*WORDS, *TAGS]), max_size=5).map("".join)
parts = st.lists(st.builds(lambda text: {"type": "text", "text": text}, spoken), max_size=2)
content = spoken | parts
values = spoken | st.integers() | st.booleans() | st.none() | st.lists(st.floats(-9, 9) | spoken, max_size=2)
call = st.builds(
    lambda name, arguments: {"type": "function", "id": "c", "function": {"name": name, "arguments": arguments}},
    st.sampled_from(["weather", "now"]),
    st.dictionaries(st.sampled_from(["city", "days", "ü"]), values | st.dictionaries(spoken, values, max_size=1)),
)
question = st.fixed_dictionaries({"role": st.just("user"), "content": content})
reply = st.fixed_dictionaries(
    {"role": st.just("assistant")},
    optional={"content": content, "reasoning_content": spoken, "tool_calls": st.lists(call, min_size=1, max_size=3)},
)
result = st.fixed_dictionaries({"role": st.just("tool"), "content": content, "tool_call_id": st.just("c")})
system = st.fixed_dictionaries({"role": st.just("system"), "content": content})
turn = st.tuples(question, st.lists(reply | result, max_size=4)).map(lambda made: [made[0], *made[1]])
# Mostly as conversations go, and sometimes in any order, which templates refuse.
conversation = st.tuples(st.lists(system, max_size=1), st.lists(turn, min_size=1, max_size=3)).map(
    lambda made: [*made[0], *chain.from_iterable(made[1])]
) | st.lists(system | question | reply | result, min_size=1, max_size=4)
variables = st.fixed_dictionaries(
    {},
    optional={"enable_thinking": st.booleans(), "preserve_thinking": st.booleans(), "reasoning_effort": st.just("low")},
)
tools_or_none = st.sampled_from([None, TOOLS])
