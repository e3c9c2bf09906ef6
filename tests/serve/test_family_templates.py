"""Chat templates of the family, rendered as transformers renders them, and the answers that they ask for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from hypothesis import given

from chat_strategies import TOOLS, conversation, tools_or_none, variables
from family_templates import TEMPLATES, write_family_tokenizer
from gossamer.data.chat.records import read_records
from gossamer.data.chat.samples import build_examples
from gossamer.data.chat.template import ChatTemplate, TemplateRefusal
from gossamer.data.tokenizer import Tokenizer
from live_service import live


def folder_of_trl() -> Path | None:
    found = importlib.util.find_spec("trl")
    return Path(found.origin).parent / "chat_templates" if found and found.origin else None


FOREIGN = sorted(folder_of_trl().glob("qwen*.jinja")) if folder_of_trl() else []


def pair(folder: Path, form: str, template: str | None = None) -> SimpleNamespace:
    """Both programs with the same tokenizer and template."""
    write_family_tokenizer(folder, form, template)
    tokenizer = Tokenizer.load(folder)
    peer = transformers.AutoTokenizer.from_pretrained(folder)
    return SimpleNamespace(tokenizer=tokenizer, peer=peer, template=ChatTemplate(tokenizer))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SimpleNamespace]:
    return {form: pair(tmp_path_factory.mktemp(form), form) for form in TEMPLATES}


def check(both: SimpleNamespace, said: list[dict[str, Any]], tools: Any, variables: dict[str, Any]) -> None:
    """The same tokens, or both refuse."""
    try:
        wanted = both.peer.apply_chat_template(
            said, tools=tools, add_generation_prompt=True, return_dict=False, **variables
        )
    except Exception as error:
        with pytest.raises(TemplateRefusal) as refusal:
            both.template.render(said, tools, variables)
        assert str(error) in str(refusal.value)
        return
    made = both.template.render(said, tools, variables)
    assert list(made.ids) == wanted
    assert made.thinking == both.peer.decode(wanted).rstrip().endswith("<think>")
    assert both.template._text(said, tools, variables, False) == both.peer.apply_chat_template(
        said, tools=tools, tokenize=False, **variables
    )


@pytest.mark.parametrize("form", TEMPLATES)
@given(said=conversation, tools=tools_or_none, variables=variables)
def test_a_conversation_becomes_the_tokens_of_transformers(pairs, form, said, tools, variables):
    check(pairs[form], said, tools, variables)


@pytest.mark.slow
@pytest.mark.skipif(not FOREIGN, reason="trl is not installed; `pip install --no-deps trl` brings Qwen's templates")
@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: path.stem)
def test_released_templates_give_the_tokens_of_transformers(path, tmp_path):
    form = "qwen3_5" if path.stem >= "qwen3_5" and path.stem[6].isdigit() else "qwen3"
    both = pair(tmp_path, form, path.read_text())
    if "vl" not in path.stem:
        assert both.template.tools == ("xml" if form == "qwen3_5" else "json")

    @given(said=conversation, tools=tools_or_none, variables=variables)
    def agree(said, tools, variables):
        check(both, said, tools, variables)

    agree()


@pytest.mark.parametrize(("form", "calls"), [("qwen3", "json"), ("qwen3_5", "xml")])
def test_the_form_of_calls_and_the_beginning_of_messages_are_found(pairs, form, calls):
    template, tokenizer = pairs[form].template, pairs[form].tokenizer
    assert template.tools == calls and template.thinks and template.stop == () and tokenizer.eot == "<|im_end|>"
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    made = template.render(said)
    assert [tokenizer.decode(made.ids[place : place + 1], special=True) for place in made.boundaries] == [
        "<|im_start|>"
    ] * 3


THOUGHT = "It <b>rains</b>,\nI think."
WRITTEN = {
    "qwen3": '<tool_call>\n{"name": "weather", "arguments": {"city": "東京 🦊", "days": 3}}\n</tool_call>',
    "qwen3_5": "<tool_call>\n<function=weather>\n<parameter=city>\n東京 🦊\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
}


@pytest.fixture(scope="module", params=TEMPLATES)
def served(request, tmp_path_factory):
    folder = write_family_tokenizer(tmp_path_factory.mktemp("served"), request.param)
    with live(folder) as service:
        yield SimpleNamespace(service=service, form=request.param)


def answers(served: SimpleNamespace, text: str, **more: Any) -> list[dict[str, Any]]:
    """The message that comes of a model's text, asked for as a whole and in a stream."""
    whole = served.service.say(f"SAY {text}", max_tokens=600, **more)
    assert whole.status_code == 200, whole.text
    message = whole.json()["choices"][0]["message"]
    streamed: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    body = served.service.say(f"SAY {text}", max_tokens=600, stream=True, **more).text
    for line in body.split("\n\n"):
        if not line.startswith("data: {"):
            continue
        delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
        for key in ("content", "reasoning_content"):
            streamed[key] += delta.get(key) or ""
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(streamed["tool_calls"]):
                streamed["tool_calls"].append(part)
            else:
                streamed["tool_calls"][part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return [message, streamed]


def simple(message: dict[str, Any]) -> tuple[str, str, list[tuple[str, Any]]]:
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls") or ()
    ]
    return message.get("reasoning_content") or "", message["content"] or "", calls


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("enable_thinking", [None, False])
def test_reasoning_content_and_calls_come_apart(served, count, enable_thinking):
    is_open = served.form == "qwen3_5" and enable_thinking is None
    thought = f"{THOUGHT}\n</think>\n\n" if is_open else f"<think>\n{THOUGHT}\n</think>\n\n"
    text = thought + "Let me see." + f"\n\n{WRITTEN[served.form]}" * count
    variables = {} if enable_thinking is None else {"chat_template_kwargs": {"enable_thinking": enable_thinking}}
    wanted = (THOUGHT, "Let me see.", [("weather", {"city": "東京 🦊", "days": 3})] * count)
    for message in answers(served, text, tools=TOOLS, **variables):
        assert simple(message) == wanted


def test_an_answer_goes_back_into_the_conversation(served):
    """What a client sends back is rendered as the model wrote it."""
    thought = THOUGHT if served.form == "qwen3" else ""
    text = ("<think>\n" * bool(thought)) + f"{THOUGHT}\n</think>\n\n{WRITTEN[served.form]}"
    message = answers(served, text, tools=TOOLS)[0]
    said = [
        {"role": "user", "content": "Rain?"},
        {key: value for key, value in message.items() if value is not None},
        {"role": "tool", "content": "no", "tool_call_id": message["tool_calls"][0]["id"]},
    ]
    found = served.service.post("/tokenize", {"messages": said, "tools": TOOLS})
    assert found.status_code == 200, found.text
    tokenizer = served.service.service.tokenizer
    prompt = tokenizer.decode(found.json()["tokens"], special=True)
    assert f"<think>\n{THOUGHT}\n</think>\n\n{WRITTEN[served.form]}<|im_end|>" in prompt


def test_what_is_learned_stands_behind_what_the_service_sends_to_the_engine(served, monkeypatch, tmp_path):
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "東京", "days": 3}'}}
    messages: list[dict[str, Any]] = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief <|im_end|>"}],
        },
        {"role": "user", "content": "And <think> tomorrow?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c"},
        {"role": "assistant", "content": "It rains.", "reasoning_content": THOUGHT},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    sent: list[tuple[int, ...]] = []
    engine = served.service.service.engine
    admit = engine.admit
    monkeypatch.setattr(engine, "admit", lambda made: sent.append(made[0].prompt) or admit(made))
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            more = {"enable_thinking": "reasoning_content" in message}
            body = {"messages": messages[:index], "tools": TOOLS, "chat_template_kwargs": more, "max_tokens": 1}
            assert served.service.post("/v1/chat/completions", body).status_code == 200
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"messages": messages, "tools": TOOLS}))
    made = build_examples(read_records([str(file)]), served.service.service.tokenizer, context=4096)
    contexts = []
    for example in made.examples:
        (sample,) = example.samples
        is_target = sample.labels != -100
        starts = [place for place in range(1, len(sample)) if is_target[place] and not is_target[place - 1]]
        contexts += [tuple(sample.input_ids[:start].tolist()) for start in starts]
    assert contexts == sent
