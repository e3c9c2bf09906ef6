"""What the official client sees: every endpoint, whole and streamed, with what the answers mean."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest

from engine_double import write_tokenizer
from live_service import Live, live

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Find a thing.",
            "parameters": {"type": "object", "properties": {"text": {"type": "string"}, "count": {"type": "integer"}}},
        },
    }
]
CALL = 'Let me see.\n<tool_call>\n{"name": "find", "arguments": {"text": "a \\"b\\"", "count": 2}}\n</tool_call>'


@pytest.fixture(scope="module")
def client(server: Live) -> openai.OpenAI:
    return server.client()


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_the_one_model_is_listed_and_others_are_unknown(client):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("gossamer", "gossamer")
    assert client.models.retrieve("gossamer").max_model_len == 4096
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-5")
    assert error.value.code == "model_not_found"


def test_a_chat_answer(client):
    answer = client.chat.completions.create(model="gossamer", messages=user("SAY Grüße!"))
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == ("Grüße!", "assistant", "stop")
    assert choice.message.tool_calls is None and choice.logprobs is None
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens == len("Grüße!".encode()) + 1


def test_a_streamed_chat_answer(client):
    chunks = list(
        client.chat.completions.create(
            model="gossamer", messages=user("SAY Grüße!"), stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Grüße!"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 9
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_length_and_several_choices(client):
    answer = client.chat.completions.create(
        model="gossamer", messages=user("SAY abcdef"), n=3, max_completion_tokens=4, seed=5
    )
    assert [(item.index, item.message.content, item.finish_reason) for item in answer.choices] == [
        (index, "abcd", "length") for index in range(3)
    ]
    assert answer.usage.completion_tokens == 12
    chunks = list(
        client.chat.completions.create(model="gossamer", messages=user("SAY abc"), n=2, max_tokens=2, stream=True)
    )
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in mine) == "ab"
        assert mine[-1].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client, stream):
    options = {"model": "gossamer", "messages": user("SAY aé"), "logprobs": True, "top_logprobs": 2}
    if stream:
        chunks = client.chat.completions.create(**options, stream=True)
        told = [item for chunk in chunks if chunk.choices[0].logprobs for item in chunk.choices[0].logprobs.content]
    else:
        told = client.chat.completions.create(**options).choices[0].logprobs.content
    assert [(item.token, item.bytes, item.logprob) for item in told] == [
        ("a", [97], -0.5),
        ("\\xc3", [0xC3], -0.5),  # é in UTF-8, a byte a token
        ("\\xa9", [0xA9], -0.5),
    ]
    assert [[other.logprob for other in item.top_logprobs] for item in told] == [[-0.5, -1.5]] * 3


def test_reasoning_comes_apart(client):
    more = {"chat_template_kwargs": {"enable_thinking": True}}
    says = user("SAY hm, hm\n</think>\n\nIt is 5.")
    answer = client.chat.completions.create(model="gossamer", messages=says, extra_body=more)
    assert answer.choices[0].message.content == "It is 5."
    assert answer.choices[0].message.reasoning_content == "hm, hm"
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
    chunks = list(client.chat.completions.create(model="gossamer", messages=says, extra_body=more, stream=True))
    thought = "".join(getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert (thought, said) == ("hm, hm", "It is 5.")


def test_tool_calls(client):
    answer = client.chat.completions.create(model="gossamer", messages=user(f"SAY {CALL}"), tools=TOOLS)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    (call,) = choice.message.tool_calls
    assert call.function.name == "find" and json.loads(call.function.arguments) == {"text": 'a "b"', "count": 2}
    turn = [
        *user("q"),
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "found"},
        *user("SAY thanks"),
    ]
    again = client.chat.completions.create(model="gossamer", messages=turn, tools=TOOLS)
    assert again.choices[0].message.content == "thanks"


@pytest.mark.parametrize("form", ["json", "xml"])
def test_tool_calls_are_streamed_as_they_are_written(client, tmp_path, form):
    if form == "json":
        found = _streamed_call(client, CALL)
    else:
        text = (
            'Let me see.\n<tool_call>\n<function=find>\n<parameter=text>\na "b"\n</parameter>\n'
            "<parameter=count>\n2\n</parameter>\n</function>\n</tool_call>"
        )
        with live(write_tokenizer(tmp_path, "xml")) as service:
            found = _streamed_call(service.client(), text)
    name, pieces, content, finish = found
    assert (name, content, finish) == ("find", "Let me see.", "tool_calls")
    assert len(pieces) > 5 and json.loads("".join(pieces)) == {"text": 'a "b"', "count": 2}


def _streamed_call(client: openai.OpenAI, text: str) -> tuple[str, list[str], str, str]:
    chunks = client.chat.completions.create(model="gossamer", messages=user(f"SAY {text}"), tools=TOOLS, stream=True)
    choices = [chunk.choices[0] for chunk in chunks]
    calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    assert calls[0].id and calls[0].type == "function" and {call.index for call in calls} == {0}
    content = "".join(choice.delta.content or "" for choice in choices)
    return calls[0].function.name, [call.function.arguments for call in calls[1:]], content, choices[-1].finish_reason


def test_the_clients_own_stream_helper_puts_a_call_together(client):
    with client.chat.completions.stream(model="gossamer", messages=user(f"SAY {CALL}"), tools=TOOLS) as stream:
        final = stream.get_final_completion()
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments)["count"] == 2


def test_no_tools_by_choice(client):
    answer = client.chat.completions.create(
        model="gossamer", messages=user(f"SAY {CALL}"), tools=TOOLS, tool_choice="none"
    )
    assert answer.choices[0].message.content == CALL and answer.choices[0].finish_reason == "stop"


def test_completions_of_texts_and_of_token_ids(client):
    answer = client.completions.create(model="gossamer", prompt=["SAY one", "SAY two"], n=2, echo=True)
    assert [item.text for item in answer.choices] == ["SAY oneone"] * 2 + ["SAY twotwo"] * 2
    assert [item.index for item in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 14
    ids = list(client.post("/../tokenize", body={"prompt": "SAY ids"}, cast_to=object)["tokens"])
    answer = client.completions.create(model="gossamer", prompt=ids, max_tokens=2, logprobs=1)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("id", "length")
    assert answer.choices[0].logprobs.tokens == ["i", "d"]
    assert answer.choices[0].logprobs.text_offset == [0, 1]


def test_streamed_completions(client):
    chunks = list(
        client.completions.create(
            model="gossamer", prompt="SAY abc", stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "abc"
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 4


def test_a_response_is_complete_or_says_why_not(client):
    answer = client.responses.create(
        model="gossamer", input="SAY hello", instructions="Be brief.", metadata={"a": "b"}, store=False
    )
    assert (answer.output_text, answer.status, answer.metadata) == ("hello", "completed", {"a": "b"})
    assert answer.usage.output_tokens == 6
    short = client.responses.create(model="gossamer", input="SAY hello", max_output_tokens=2)
    assert (short.output_text, short.status) == ("he", "incomplete")
    assert short.incomplete_details.reason == "max_output_tokens"
    counted = client.responses.input_tokens.count(model="gossamer", input="SAY hello", instructions="Be brief.")
    assert counted.input_tokens == answer.usage.input_tokens


def test_a_conversation_of_responses_with_a_tool(client):
    tools = [{"type": "function", "name": "find", "parameters": TOOLS[0]["function"]["parameters"]}]
    asked = [{"role": "user", "content": [{"type": "input_text", "text": f"SAY {CALL}"}]}]
    answer = client.responses.create(model="gossamer", input=asked, tools=tools)
    message, call = answer.output
    assert message.content[0].text == "Let me see." and json.loads(call.arguments)["count"] == 2
    turn = [
        *asked,
        *(item.model_dump(exclude_none=True) for item in answer.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "found"},
        {"role": "user", "content": "SAY thanks"},
    ]
    assert client.responses.create(model="gossamer", input=turn, tools=tools).output_text == "thanks"


def test_streamed_responses(client):
    tools = [{"type": "function", "name": "find", "parameters": TOOLS[0]["function"]["parameters"]}]
    events = list(client.responses.create(model="gossamer", input=f"SAY {CALL}", tools=tools, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Let me see."
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == done.arguments
    final = events[-1].response
    assert [item.type for item in final.output] == ["message", "function_call"]
    with client.responses.stream(model="gossamer", input="SAY hi") as stream:
        assert stream.get_final_response().output_text == "hi"


def test_a_base_model_talks_in_a_plain_dialogue(tmp_path):
    with live(write_tokenizer(tmp_path, None)) as service:
        client = service.client()
        answer = client.chat.completions.create(model="gossamer", messages=user("x"), max_tokens=4)
        assert answer.choices[0].message.content == "word"
        assert client.models.list().data[0].chat_template == "default"
        with pytest.raises(openai.BadRequestError, match="cannot call any"):
            client.chat.completions.create(model="gossamer", messages=user("x"), tools=TOOLS)


@pytest.fixture(scope="module")
def metrics(server: Live) -> Iterator[dict[str, float]]:
    server.say("SAY abc")
    server.get("/no/such/path")
    lines = server.get("/metrics").text.splitlines()
    yield {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_metrics_tell_what_was_done(metrics):
    assert metrics['gossamer_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}'] >= 1
    assert metrics['gossamer_tokens_total{kind="completion"}'] >= 4
    assert metrics["gossamer_first_token_seconds_count"] >= 1
    assert metrics["gossamer_ready"] == 1
    assert metrics['gossamer_engine{name="running"}'] >= 0
    assert metrics['gossamer_http_requests_total{method="GET",route="none",status="404"}'] >= 1
    assert not any("no/such" in name for name in metrics)
