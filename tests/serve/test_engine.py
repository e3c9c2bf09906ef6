"""The service around the real engine, with a network that was never trained: it says nothing, but exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from gossamer.data.tokenizer import Tokenizer
from gossamer.infer.options import EngineOptions
from gossamer.model.causal_lm import CausalLM
from gossamer.serve.engine_worker import EngineConfig, build_engine
from live_service import Live, live

SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "integer", "minimum": 0, "maximum": 99}, "sure": {"type": "boolean"}},
    "required": ["size", "sure"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "measure", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def service(tiny: Path) -> Iterator[Live]:
    config = EngineConfig("cpu", EngineOptions(max_batch=4, page_size=16, snapshot_interval=32, prefill_chunk=32))
    with live(tiny, partial(build_engine, tiny, config)) as running:
        yield running


@torch.no_grad()
def greedy(model: CausalLM, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def test_greedy_text_is_the_full_forwards_whoever_else_asks(service, network, tiny):
    tokenizer = Tokenizer.load(tiny)
    prompts = ["a long one " * 20, "b", "a long one " * 20 + "that goes on", "c c c"]
    wanted = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt)
        wanted.append(tokenizer.decode(greedy(network, ids, 12)[len(ids) :]))
    asked = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            answers = pool.map(lambda text: service.post("/v1/completions", {"prompt": text, **asked}).json(), prompts)
            assert [answer["choices"][0]["text"] for answer in answers] == wanted


def test_the_same_seed_says_the_same_and_the_prefix_is_found_again(service):
    said = [{"role": "user", "content": "word " * 30}]
    asked = {"messages": said, "max_tokens": 20, "seed": 7, "temperature": 1.0}
    first, second = (service.post("/v1/chat/completions", asked).json() for _ in range(2))
    assert first["choices"][0]["message"] == second["choices"][0]["message"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    other = service.post("/v1/chat/completions", asked | {"seed": 8}).json()
    assert other["choices"][0]["message"] != first["choices"][0]["message"]


def test_a_stop_string_ends_the_text_before_it(service):
    asked = {"prompt": "abc", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    text = service.post("/v1/completions", asked).json()["choices"][0]["text"]
    stop = text[5:7]
    answer = service.post("/v1/completions", asked | {"stop": stop}).json()["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == (text[: text.index(stop)], "stop")


def test_a_format_is_kept_to(service):
    asked = {
        "messages": [{"role": "user", "content": "size?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "size", "schema": SCHEMA}},
        "temperature": 1.5,
        "max_tokens": 300,
    }
    for seed in range(4):
        choice = service.post("/v1/chat/completions", asked | {"seed": seed}).json()["choices"][0]
        value = json.loads(choice["message"]["content"])
        assert choice["finish_reason"] == "stop"
        assert value.keys() == SCHEMA["properties"].keys() and 0 <= value["size"] <= 99


def test_a_forced_call_is_one(service):
    asked = {"messages": [{"role": "user", "content": "size?"}], "tools": [TOOL], "max_tokens": 300}
    named = {"type": "function", "function": {"name": "measure"}}
    for seed in range(4):
        choice = service.post("/v1/chat/completions", asked | {"seed": seed, "tool_choice": named}).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "measure"
        assert json.loads(call["function"]["arguments"]).keys() == SCHEMA["properties"].keys()


def test_a_schema_that_is_none_is_refused(service):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    answer = service.say("x", response_format=form)
    assert answer.status_code == 400, answer.text
    assert service.say("x", response_format={"type": "regex", "pattern": "("}).status_code == 400


def test_more_than_the_cache_holds_is_refused(service, tiny):
    assert service.service.info.max_model_len == 2048
    answer = service.post("/v1/completions", {"prompt": "a" * 2000, "max_tokens": 49})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    config = EngineConfig("cpu", EngineOptions(max_batch=1, page_size=16, snapshot_interval=32, cache_tokens=64))
    with live(tiny, partial(build_engine, tiny, config)) as small:
        assert small.service.info.max_model_len == 64
        assert small.post("/v1/completions", {"prompt": "a" * 60, "max_tokens": 4}).status_code == 200
        assert small.post("/v1/completions", {"prompt": "a" * 60, "max_tokens": 5}).status_code == 400
