"""What a hostile model or file may hold does nothing on the chat page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from browser import ATTACKS, send
from gossamer.serve.app import PAGE
from live_service import Live

expect = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install playwright").expect


def test_nothing_a_model_says_is_executed(server: Live, visit: Any) -> None:
    page = visit(server)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    send(page, f"SAY {ATTACKS}")
    expect(page.locator(".assistant figure code")).to_contain_text("<script>")
    page.get_by_role("button", name="This conversation").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Name of the conversation").fill("<img src=x onerror='window.hit=1'>")
    page.keyboard.press("Enter")
    page.locator("#title").hover()
    inside = page.locator(".assistant article > .prose")
    assert (
        inside.locator("script, img, svg:not(.icon), iframe, style, form, object, embed, base, link, meta").count() == 0
    )
    links = inside.locator("a").evaluate_all("all => all.map(a => [a.protocol, a.rel, a.target])")
    assert links and all(
        protocol == "https:" and "noopener" in rel and target == "_blank" for protocol, rel, target in links
    )
    handlers = (
        "all => all.flatMap(e => e.getAttributeNames()).filter(name => name.startsWith('on') || name === 'style')"
    )
    assert inside.locator("*").evaluate_all(handlers) == []
    for link in inside.locator("a").all():
        link.dispatch_event("mouseover")
    assert page.evaluate("window.hit") is None
    assert all(url.startswith(server.url) for url in asked)


def test_the_policy_would_stop_what_slipped_through(page_once: Any, server: Live) -> None:
    policy = server.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    refused = """() => {
        const made = document.createElement("div");
        try { made.innerHTML = "<b>x</b>"; return "made"; } catch (error) { return error.name; }
    }"""
    assert page_once.evaluate(refused) == "TypeError"  # Trusted Types
    inserted = """(name) => {
        const made = document.createElement("script");
        try { made[name] = "window.hit = 1"; document.body.append(made); }
        catch (error) { return error.name; }
        return "run";
    }"""
    assert page_once.evaluate(inserted, "text") == page_once.evaluate(inserted, "src") == "TypeError"
    assert page_once.evaluate("window.hit") is None
    for name in PAGE.rglob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", name.read_text()
        )


def broken(change: Callable[[dict], Any]) -> str:
    message = {"parent": None, "child": 1, "role": "user", "text": "a", "reasoning": "", "created": 1, "end": None,
               "problem": None, "usage": None, "seconds": None}  # fmt: skip
    answer = message | {"parent": 0, "child": None, "role": "assistant", "end": "stop"}
    conversation = {"version": 1, "id": "x", "mode": "chat", "title": "", "created": 1, "updated": 1, "system": "",
                    "first": 0, "messages": [message, answer], "text": "", "before": None}  # fmt: skip
    data = {"format": "gossamer conversations", "version": 1, "conversations": [conversation]}
    change(data)
    return json.dumps(data)


def first(data: dict) -> dict:
    return data["conversations"][0]


@pytest.mark.parametrize(
    "text,told",
    [
        ("{", "This file is not JSON."),
        ("null", "not exported from a gossamer chat page"),
        ('{"messages": []}', "not exported from a gossamer chat page"),
        (broken(lambda data: data.update(version=2)), "version 2 is not known"),
        (broken(lambda data: first(data).update(messages=3)), "Conversation 1: messages is missing or wrong"),
        (broken(lambda data: first(data)["messages"][0].update(child=0)), "child"),
        (broken(lambda data: first(data)["messages"][1].update(parent=1)), "parent"),
        (broken(lambda data: first(data).update(first=1)), "first"),
        (broken(lambda data: first(data)["messages"][0].update(text={"a": 1})), "text"),
        (broken(lambda data: first(data)["messages"][0].update(role="system")), "role"),
        (broken(lambda data: data["conversations"].append(None)), "Conversation 2: mode"),
    ],
)
def test_a_damaged_file_is_refused(page_once: Any, text: str, told: str) -> None:
    page_once.locator("#file").set_input_files(
        {"name": "a.json", "mimeType": "application/json", "buffer": text.encode()}
    )
    expect(page_once.locator("#notice-text")).to_contain_text(told)
    expect(page_once.locator("#conversations .title")).to_have_count(0)
