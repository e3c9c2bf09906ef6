"""What is refused, each thing with its status and in OpenAI's shape, and who may come in."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx2
import openai
import pytest

import gossamer.serve.app
from live_service import live, until

KEY, OTHER = "key-of-sixteen-and-more", "another-key-of-many-letters"
HI = [{"role": "user", "content": "SAY hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
BAD_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
CALLED = {"role": "assistant", "tool_calls": [BAD_CALL]}
CHAT, TEXT, NEW = "/v1/chat/completions", "/v1/completions", "/v1/responses"

REFUSED = [
    (CHAT, {"messages": HI, "foo": 1}, "foo", "unsupported_field"),
    (CHAT, {"messages": HI, "reasoning_effort": "low"}, "reasoning_effort", "unsupported_field"),
    (CHAT, {"messages": HI, "store": True}, "store", None),
    (CHAT, {"messages": []}, "messages", None),
    (CHAT, {}, "messages", "missing"),
    (CHAT, {"messages": [{"role": "nobody", "content": "a"}]}, "messages.0", None),
    (CHAT, {"messages": [{"role": "user", "content": "a", "color": 1}]}, "messages.0.color", "unsupported_field"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", None),
    (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, None, None),
    (CHAT, {"messages": HI, "temperature": -1}, "temperature", None),
    (CHAT, {"messages": HI, "temperature": "1"}, "temperature", None),
    (CHAT, {"messages": HI, "max_tokens": 0}, "max_tokens", None),
    (CHAT, {"messages": HI, "max_tokens": 5, "max_completion_tokens": 5}, None, None),
    (CHAT, {"messages": HI, "max_tokens": 5000}, "messages", "context_length_exceeded"),
    (CHAT, {"messages": HI, "max_tokens": 100_000}, "max_tokens", None),
    (CHAT, {"messages": [{"role": "user", "content": "a" * 5000}]}, "messages", "context_length_exceeded"),
    (CHAT, {"messages": HI, "n": 17}, "n", None),
    (CHAT, {"messages": HI, "stream_options": {"include_usage": True}}, None, None),
    (CHAT, {"messages": HI, "top_logprobs": 2}, None, None),
    (CHAT, {"messages": HI, "logit_bias": {"x": 1}}, "logit_bias.x", None),
    (CHAT, {"messages": HI, "logit_bias": {"99999": 1}}, "logit_bias", None),
    (CHAT, {"messages": HI, "stop": [""]}, "stop.0", None),
    (CHAT, {"messages": HI, "tool_choice": "auto"}, "tool_choice", None),
    (CHAT, {"messages": HI, "tools": [TOOL, TOOL]}, "tools", None),
    (CHAT, {"messages": HI, "tools": [TOOL], "tool_choice": TOOL | {"function": {"name": "g"}}}, "tool_choice", None),
    (CHAT, {"messages": HI, "tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format", None),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"messages": []}}, "messages", "template_error"),
    (CHAT, {"messages": [CALLED]}, "messages.0.tool_calls.0.function.arguments", None),
    (CHAT, {"messages": [{"role": "user", "content": "REFUSE"}]}, None, "invalid_value"),
    (TEXT, {"prompt": "a", "suffix": "b"}, "suffix", "unsupported_field"),
    (TEXT, {"prompt": "a", "best_of": 2}, "best_of", "unsupported_field"),
    (TEXT, {"prompt": "a", "echo": True, "logprobs": 1}, None, None),
    (TEXT, {"prompt": []}, "prompt", None),
    (TEXT, {"prompt": [999_999]}, "prompt", None),
    (TEXT, {"prompt": ["a"] * 17}, "prompt", None),
    (TEXT, {"prompt": ["a", "b"], "n": 9}, "n", None),
    (TEXT, {"prompt": "a" * 5000}, "prompt", "context_length_exceeded"),
    (TEXT, {"prompt": ["a", "a" * 5000]}, "prompt.1", "context_length_exceeded"),
    (TEXT, {"prompt": "a", "max_tokens": 40_000}, "max_tokens", None),
    (CHAT, {"messages": HI, "max_completion_tokens": 40_000}, "max_completion_tokens", None),
    (NEW, {"input": "a" * 5000}, "input", "context_length_exceeded"),
    (NEW, {"input": "a", "max_output_tokens": 40_000}, "max_output_tokens", None),
    (NEW, {"input": "a", "previous_response_id": "resp_1"}, "previous_response_id", "unsupported_field"),
    (NEW, {"input": "a", "background": True}, "background", None),
    (NEW, {"input": [{"type": "computer_call"}]}, None, None),
    (NEW, {"input": []}, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "code"), REFUSED, ids=[str(index) for index in range(len(REFUSED))])
def test_what_is_not_supported_is_refused_in_openais_shape(server, path, body, param, code):
    answer = server.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["message"] and "\n" not in error["message"]
    assert error["param"] == param or param is None
    assert error["code"] == code or code is None


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"null", "application/json", 400),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "application/json", 400),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "application/json", 400),
        (b"[" * 200_000, "application/json", 400),
        (b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}", "application/json", 400),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "text/plain", 400),
        (b"x" * (4 * 2**20 + 1), "application/json", 413),
    ],
)
def test_bodies_that_are_malformed_or_too_large(server, body, kind, status):
    answer = server.post(CHAT, content=body, headers={"Content-Type": kind})
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_a_body_without_a_length_is_measured_too(server):
    answer = server.post(CHAT, content=(b"x" * 2**20 for _ in range(6)), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_another_model_path_or_method(server):
    assert server.say("SAY x", model="gpt-5").status_code == 404
    assert server.get("/v1/nothing").json()["error"]["code"] == "not_found"
    answer = server.get(CHAT)
    assert answer.status_code == 405 and answer.headers["allow"] == "POST" and answer.json()["error"]["message"]


def test_head_and_the_icon_are_answered_without_a_key(server, guarded):
    for service in (server, guarded):
        for path in ("/", "/health", "/ready", "/page/main.js", "/favicon.ico"):
            answer = service.request("HEAD", path)
            assert answer.status_code == 200 and answer.content == b"", path
        icon = service.get("/favicon.ico")
        assert icon.headers["content-type"].startswith("image/svg+xml") and b"<svg" in icon.content


def test_metrics_count_by_route_also_what_never_gets_there(server):
    server.post(CHAT, content=b"x" * (4 * 2**20 + 1))
    server.get("/page/main.js")
    server.request("BREW", CHAT)
    lines = server.get("/metrics").text
    for labels in (
        f'method="POST",route="{CHAT}",status="413"',
        'method="GET",route="/page",status="200"',
        f'method="other",route="{CHAT}",status="405"',
    ):
        assert f"gossamer_http_requests_total{{{labels}}} " in lines


def test_a_name_that_leads_here_from_elsewhere_is_refused(server):
    port = server.url.rsplit(":", 1)[1]
    answer = server.get("/v1/models", headers={"Host": f"evil.example:{port}"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "unknown_host"
    for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}"):
        assert server.get("/v1/models", headers={"Host": host}).status_code == 200


def test_no_origin_may_call_unless_it_is_named(server, folder):
    asks = {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in server.get("/v1/models", headers=asks).headers
    with live(folder, cors=("http://a.example",)) as service:
        allowed = service.request("OPTIONS", CHAT, headers=asks)
        assert allowed.headers["access-control-allow-origin"] == "http://a.example"
        other = service.request("OPTIONS", CHAT, headers=asks | {"Origin": "http://b.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.fixture(scope="module")
def guarded(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"anna {KEY}\n{OTHER}\n")
    file.chmod(0o600)
    with live(folder, keys=file) as service:
        yield service


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_opens_and_nothing_else_does(guarded):
    assert guarded.client(KEY).models.list().data
    for path in ("/v1/models", "/metrics", "/openapi.json", "/tokenize", "/no/such"):
        answer = guarded.get(path)
        assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"
    for wrong in ("x", KEY[:-1], KEY.upper(), f"{KEY} {KEY}", "Basic " + KEY):
        assert guarded.get("/v1/models", headers=bearer(wrong)).status_code == 401
    with pytest.raises(openai.AuthenticationError):
        guarded.client("wrong").models.list()
    assert guarded.get("/health").status_code == guarded.get("/ready").status_code == 200


def test_a_key_is_asked_for_before_the_body_is_read(guarded):
    with guarded.connect() as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_the_log_names_the_key_and_holds_no_prompt(guarded, caplog):
    caplog.set_level("INFO", "gossamer.serve")
    secret = [{"role": "user", "content": "SAY pomegranate"}]
    guarded.client(KEY).chat.completions.create(model="gossamer", messages=secret, user="a b\nc")
    guarded.get("/v1/models%0aforged", headers=bearer(KEY))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("gossamer")]
    (line,) = [line for line in lines if f"{CHAT} 200" in line]
    assert "key=anna" in line and "completion=12" in line and "finish=stop" in line and r"user='a b\nc'" in line
    assert not any("pomegranate" in line or KEY in line or "\n" in line for line in lines)


def test_prompts_are_logged_where_that_was_asked_for(folder, caplog):
    caplog.set_level("INFO", "gossamer.serve")
    with live(folder, log_prompts=True) as service:
        service.say("SAY pomegranate")
    texts = [record.getMessage() for record in caplog.records]
    assert any("prompt" in text and "SAY pomegranate" in text for text in texts)
    assert "answer 'pomegranate'" in texts


def test_a_full_queue_is_429_and_says_when_to_come_back(folder):
    with live(folder, build={"max_batch": 1}, max_queue=1) as service, ThreadPoolExecutor(8) as pool:
        with service.held():
            asked = [pool.submit(service.say, "HOLD SAY xx") for _ in range(8)]
            until(lambda: sum(item.done() for item in asked) == 6)
        answers = [item.result() for item in asked]
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses.count(200) == 2 and statuses.count(429) == 6
        full = next(answer for answer in answers if answer.status_code == 429)
        assert 1 <= int(full.headers["retry-after"]) <= 120 and full.json()["error"]["code"] == "queue_full"
        assert service.say("SAY x", n=3).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_waiting_too_long_is_503(folder, stream):
    with live(folder, build={"max_batch": 1}, queue_timeout=0.3) as service, ThreadPoolExecutor(2) as pool:
        with service.held():
            first = pool.submit(service.say, "HOLD SAY xx")
            service.until_active(1)
            late = service.say("SAY late", stream=stream)
        assert late.status_code == 503 and late.json()["error"]["code"] == "queue_timeout", late.text
        assert late.headers["retry-after"]
        assert first.result().json()["choices"][0]["message"]["content"] == "xx"


def test_running_too_long_is_503_or_the_streams_last_event(folder):
    with live(folder, request_timeout=0.3) as service:
        assert service.say("SLOW x").json()["error"]["code"] == "request_timeout"
        events = service.say("SLOW x", stream=True).text.strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "request_timeout"
        service.until_idle()


def test_a_body_that_does_not_come_is_408(folder):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with live(folder, body_timeout=0.3) as service, service.connect() as connection:
        connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_an_idle_stream_is_kept_open_by_pings(folder):
    with live(folder, build={"max_batch": 1}, ping=0.1) as service, ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        body = {"messages": [{"role": "user", "content": "SAY y"}], "stream": True}
        with service.held():
            first = pool.submit(service.say, "HOLD SAY xx")
            service.until_active(1)
            answer = stack.enter_context(httpx2.stream("POST", service.url + CHAT, json=body, timeout=120))
            pieces = answer.iter_text()
            assert next(pieces).startswith(": ping\n\n")
        assert "".join(pieces).endswith("data: [DONE]\n\n")
        assert first.result().status_code == 200


def test_the_page_is_served_without_a_key_and_may_load_nothing_from_elsewhere(folder, tmp_path, monkeypatch):
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html><title>chat</title>")
    (page / "chat.js").write_text("1")
    monkeypatch.setattr(gossamer.serve.app, "PAGE", page)
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with live(folder, keys=keys) as service:
        answer = service.get("/")
        assert answer.status_code == 200 and "<title>chat</title>" in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert service.get("/page/chat.js").text == "1"
        assert service.get("/page/../keys").status_code == service.get("/v1/models").status_code == 401
        assert service.get("/page/%2e%2e/keys").status_code in (401, 404)


def test_openapi_describes_what_is_there(server, guarded):
    description = server.get("/openapi.json").json()
    assert {CHAT, TEXT, NEW, "/v1/models", "/tokenize", "/health", "/ready", "/metrics"} <= description["paths"].keys()
    for path, methods in description["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"] and operation["summary"], path
    described = guarded.get("/openapi.json", headers=bearer(KEY)).json()
    assert described["paths"][CHAT]["post"]["security"] == [{"key": []}]
    assert "security" not in described["paths"]["/health"]["get"]
