"""What is wrong with a request, in words that name the field and what it takes."""

from __future__ import annotations

import json

import pytest

CHAT, TEXT, NEW = "/v1/chat/completions", "/v1/completions", "/v1/responses"
IMAGE = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "https://a.example/a.png"}}]


def user(content: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (CHAT, user(IMAGE), "messages.0.content.1.type: 'image_url' is not taken here; expected 'text'"),
        (CHAT, user(5), "messages.0.content: expected a string or a list"),
        (CHAT, user([{"text": "a"}]), "messages.0.content.0.type: this field is required"),
        (CHAT, user(["a"]), "messages.0.content.0: expected an object"),
        (CHAT, {"messages": "a"}, "messages: expected a list"),
        (CHAT, {"messages": [{"content": "a"}]}, "messages.0: role is missing"),
        (CHAT, {"messages": [{"role": "nobody"}]}, "messages.0: role 'nobody' is not taken here; expected 'system', "),
        (CHAT, {"prompt": "a"}, "messages: this field is required"),
        (CHAT, user("a") | {"temperature": "1"}, "temperature: expected a number"),
        (CHAT, user("a") | {"tool_choice": "always"}, "tool_choice: 'always' is not taken here; expected 'none', "),
        (CHAT, user("a") | {"response_format": {"type": "xml"}}, "response_format: type 'xml' is not taken here; exp"),
        (CHAT, user("a") | {"a\nb" * 99: 1}, r"'a\nba\nb"),
        (TEXT, {"prompt": {}}, "prompt: expected a string or a list"),
        (TEXT, {"prompt": []}, "prompt: List should have at least 1 item"),
        (TEXT, {"prompt": [1, "a"]}, "prompt.1: expected an integer"),
        (TEXT, {"prompt": ["a", 5]}, "prompt.1: expected a string"),
        (TEXT, {"prompt": [["a"]]}, "prompt.0.0: expected an integer"),
        (TEXT, {"prompt": [[1], []]}, "prompt.1: List should have at least 1 item"),
        (TEXT, {"prompt": [-1]}, "prompt.0: Input should be greater than or equal to 0"),
        (TEXT, {"prompt": [True]}, "prompt.0: expected a string or an integer or a list"),
        (TEXT, {"prompt": ["a"] * 17}, "prompt: 17 answers to one request; this service makes 16 at most"),
        (TEXT, {"prompt": ["a", "b"], "n": 9}, "n: 18 answers to one request; this service makes 16 at most"),
        (CHAT, user("a") | {"max_tokens": 99_999}, "max_tokens 99999: this service makes 4096 at most"),
        (NEW, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input.0.content.0: type 'input_image' is not taken here; expected 'input_text', 'output_text'"),
        (NEW, {"input": [{"type": "computer_call"}]}, "input.0: "),
        ("/tokenize", user(IMAGE), "messages.0.content.1.type: 'image_url' is not taken here"),
        ("/tokenize", {"prompt": 5}, "prompt: expected a string"),
    ],
)  # fmt: skip
def test_a_field(server, path, body, message):
    answer = server.post(path, body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["message"].startswith(message), error
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"{}", "text/plain", "the body came without the header Content-Type: application/json"),
        (b"{}", None, "the body came without the header Content-Type: application/json"),
        (b"", None, "the body must be a JSON object"),
        (b"[1]", "application/json", "the body must be a JSON object"),
        (
            b'{"messages": "a',
            "application/json",
            "the body is not valid JSON (Unterminated string starting at character",
        ),
        (b'{"a": "\n"}', "application/json", "the body is not valid JSON (Invalid control character at character 7)"),
        (b"[" * 200_000, "application/json", "the body cannot be read as JSON"),
    ],
)
def test_a_body(server, body, kind, message):
    headers = {} if kind is None else {"Content-Type": kind}
    error = server.request("POST", CHAT, content=body, headers=headers).json()["error"]
    assert error["message"].startswith(message) and error["code"] == "bad_json", error


def test_what_the_models_context_does_not_hold_is_named_as_its_api_names_it(server):
    for path, body, words in (
        (CHAT, user("a" * 5000), "shorten messages or max_tokens"),
        (CHAT, user("a" * 5000) | {"max_completion_tokens": 9}, "shorten messages or max_completion_tokens"),
        (TEXT, {"prompt": ["a", "a" * 5000]}, "shorten prompt.1 or max_tokens"),
        (NEW, {"input": "a" * 5000}, "shorten input or max_output_tokens"),
    ):
        error = server.request("POST", path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert error.json()["error"]["message"].endswith(words)
