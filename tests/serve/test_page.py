"""The chat page in a real Chromium, with the application behind it and the engine's double behind that."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from browser import PHONE, send, texts
from engine_double import write_tokenizer
from live_service import Live, live

expect = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install playwright").expect


def test_send_stream_and_reload(server: Live, visit: Any) -> None:
    page = visit(server)
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    expect(page.locator("#model")).to_have_text("gossamer")
    send(page, "SLOW SAY one **two** three four five six seven", wait=False)
    expect(page.locator(".assistant article > .prose")).to_contain_text("one")
    assert "seven" not in texts(page)[1]  # it is shown while it comes
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator(".assistant strong")).to_have_text("two")
    expect(page.locator(".figures")).to_contain_text(re.compile(r"^38 tokens · [\d.]+ tokens/s · first after"))
    expect(page.locator("#context-text")).to_have_text(re.compile(r"^1\d\d of 4,096 tokens$"))
    expect(page.locator("#announcements")).to_have_text("The answer is complete.")
    before = texts(page)
    page.reload()
    expect(page.locator(".assistant strong")).to_have_text("two")
    assert (
        texts(page) == before == ["SLOW SAY one **two** three four five six seven", "one two three four five six seven"]
    )


def test_escape_stops_an_answer_and_keeps_what_had_come(server: Live, visit: Any) -> None:
    page = visit(server)
    send(page, "SLOW please", wait=False)
    expect(page.locator(".assistant article > .prose")).to_contain_text("word")
    page.keyboard.press("Escape")
    expect(page.locator(".assistant .hint")).to_have_text("Stopped.")
    server.until_idle()
    kept = texts(page)[1]
    send(page, "SAY next")
    assert texts(page)[1:] == [kept, "SAY next", "next"]


def test_a_reload_in_the_middle_keeps_what_had_come(server: Live, visit: Any) -> None:
    page = visit(server)
    send(page, "SLOW please", wait=False)
    expect(page.locator(".assistant article > .prose")).to_contain_text("word word")
    page.wait_for_timeout(1500)  # it is saved twice a second
    page.reload()
    expect(page.locator(".assistant .hint")).to_have_text("Interrupted.")
    assert texts(page)[1].startswith("word word")
    server.until_idle()


def test_regenerate_edit_and_branch(server: Live, visit: Any) -> None:
    page = visit(server)
    send(page, "SAY first")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".branches span")).to_have_text("2/2")
    send(page, "SAY second")
    # From an empty field, the arrow edits the last message; Ctrl+Enter sends it.
    page.get_by_label("Message", exact=True).press("ArrowUp")
    page.get_by_label("New text of the message").fill("SAY other")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".user .branches span")).to_have_text("2/2")
    expect(page.locator("#send")).to_be_visible()
    assert texts(page) == ["SAY first", "first", "SAY other", "other"]
    page.locator(".user").get_by_role("button", name="Earlier version").click()
    assert texts(page) == ["SAY first", "first", "SAY second", "second"]
    expect(page.get_by_role("button", name="Later version").last).to_be_focused()
    page.locator(".message").nth(0).hover()
    page.get_by_role("button", name="Edit message").first.click()
    page.get_by_label("New text of the message").fill("dropped")
    page.keyboard.press("Escape")
    assert texts(page) == ["SAY first", "first", "SAY second", "second"]
    # The first answer of the first message has nothing below it: the conversation ends there.
    page.locator(".assistant").first.get_by_role("button", name="Earlier version").click()
    assert texts(page) == ["SAY first", "first"]
    page.reload()
    expect(page.locator(".branches span")).to_have_text("1/2")


def test_conversations_search_rename_delete(server: Live, visit: Any) -> None:
    page = visit(server)
    for word in ("apple", "banana"):
        page.keyboard.press("Control+Shift+O")
        send(page, f"SAY {word} pie")
    entries = page.locator("#conversations button .title")
    expect(entries).to_have_text(["SAY banana pie", "SAY apple pie"])
    page.keyboard.press("Control+k")
    page.keyboard.type("PIE apple")
    expect(entries).to_have_text(["SAY apple pie"])
    entries.click()
    assert texts(page) == ["SAY apple pie", "apple pie"]
    page.get_by_label("Search conversations").fill("")
    page.get_by_role("button", name="This conversation").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Name of the conversation").fill("<b>Fruit</b>")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("<b>Fruit</b>")
    page.get_by_role("button", name="This conversation").click()
    page.locator("#delete").click()
    page.locator("#question-action").click()
    expect(entries).to_have_text(["SAY banana pie"])
    page.reload()
    expect(entries).to_have_text(["SAY banana pie"])


def test_export_and_import(server: Live, visit: Any, tmp_path: Path) -> None:
    page = visit(server)
    send(page, "SAY kept")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".branches span")).to_have_text("2/2")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    path = tmp_path / "all.json"
    download.value.save_as(path)
    data = json.loads(path.read_text())
    assert data["format"] == "gossamer conversations"
    assert [item["text"] for item in data["conversations"][0]["messages"]] == ["SAY kept", "kept", "kept"]

    other = visit(server)
    other.locator("#file").set_input_files(path)
    expect(other.locator("#notice-text")).to_have_text("1 conversation imported.")
    assert texts(other) == ["SAY kept", "kept"]
    expect(other.locator(".branches span")).to_have_text("2/2")
    other.reload()
    expect(other.locator("#conversations .title")).to_have_text(["SAY kept"])


def test_reasoning_can_be_opened(server: Live, visit: Any) -> None:
    page = visit(server)
    page.keyboard.press("Control+,")
    page.get_by_label("Reasoning").select_option("on")
    page.get_by_role("button", name="Save").click()
    send(page, "SAY hm, **hm**\n</think>\n\nIt is 5.")
    expect(page.locator(".reasoning .prose")).to_be_hidden()
    page.get_by_text("Reasoning").first.click()
    expect(page.locator(".reasoning .prose")).to_have_text("hm, hm")
    assert texts(page)[1] == "It is 5."


def test_settings_and_the_system_message_are_sent(server: Live, visit: Any) -> None:
    page = visit(server)
    sent: list[dict] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Longest answer").fill("3")
    page.get_by_label("Top p").fill("7")
    page.get_by_label("Stop texts").fill("end\n\\n\\n")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#settings")).to_be_visible()  # 7 is no share: the browser says so
    page.get_by_label("Top p").fill("")
    page.get_by_role("button", name="Save").click()
    send(page, "SAY abcdef")
    assert texts(page)[1] == "abc"
    expect(page.locator(".assistant .hint")).to_have_text("Cut off at the token limit.")
    body = sent[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["stop"]) == (0.5, 3, ["end", "\n\n"])
    assert body["top_p"] == 0.95 and "top_k" not in body  # what the model is read with, and nothing else
    page.get_by_role("button", name="New conversation").click()
    send(page, "SAY x")
    assert [message["role"] for message in sent[-1]["messages"]] == ["user"]


def test_a_key_is_asked_for(folder: Path, tmp_path: Path, visit: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice: correct-horse-battery\n")
    with live(folder, keys=keys) as service:
        page = visit(service)
        page.locator("#key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-problem")).to_be_visible()
        page.locator("#key").fill("correct-horse-battery")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("gossamer")
        send(page, "SAY in")
        assert texts(page)[1] == "in"
        page.reload()
        expect(page.locator("#model")).to_have_text("gossamer")
        # A key that was taken back meanwhile: the page asks, and the message is not lost.
        keys.write_text("alice: another-horse-battery\n")
        send(page, "SAY again", wait=False)
        page.locator("#key").fill("another-horse-battery")
        page.keyboard.press("Enter")
        expect(page.locator(".assistant article > .prose").nth(1)).to_have_text("again")
        assert "horse" not in page.evaluate("JSON.stringify(localStorage)")


def test_errors_are_told_in_words(folder: Path, visit: Any) -> None:
    with live(folder) as service:
        page = visit(service)
        problem = page.locator(".assistant .problem")
        send(page, "REFUSE this")
        expect(problem).to_contain_text("The server did not take this: this prompt asks to be refused.")
        page.keyboard.press("Control+Shift+O")
        send(page, "FAIL this")
        expect(problem).to_contain_text("The server failed at this answer")
        page.keyboard.press("Control+Shift+O")
        send(page, "a" * 5000)
        expect(problem).to_contain_text("no longer fits the model")
        expect(problem).to_contain_text("4096")
        page.keyboard.press("Control+Shift+O")
        page.route("**/v1/chat/completions", lambda route: route.abort())
        send(page, "SAY back")
        expect(problem).to_contain_text("The server cannot be reached.")
        page.unroute("**/v1/chat/completions")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".assistant article > .prose")).to_have_text("back")


def test_a_conversation_that_outgrows_the_context_goes_on(folder: Path, visit: Any) -> None:
    with live(folder, build={"max_model_len": 300}) as service:
        page = visit(service)
        sent: list[dict] = []
        page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
        for _ in range(4):
            send(page, "go on")
        expect(page.locator(".figures").last).to_contain_text(re.compile("without the [24] oldest messages"))
        assert sent[0]["max_tokens"] == 75 and page.locator(".assistant .problem").count() == 0
        assert len(sent[-1]["messages"]) < 7


def test_a_message_sent_before_the_model_is_known_waits_for_it(server: Live, visit: Any) -> None:
    page = visit(server)
    sent: list[dict] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    held: list[Any] | None = []
    page.route("**/v1/models", lambda route: route.continue_() if held is None else held.append(route))
    page.reload()
    send(page, "SAY soon", wait=False)
    expect(page.locator("#stop")).to_be_visible()
    assert held and not sent
    waiting, held = held, None
    for route in waiting:
        route.continue_()
    expect(page.locator(".assistant article > .prose")).to_have_text("soon")
    assert sent[0]["max_tokens"] == 1024


def test_a_text_that_outgrows_the_context_goes_on(tmp_path: Path, visit: Any) -> None:
    with live(write_tokenizer(tmp_path, form=None), build={"max_model_len": 1000}) as service:
        page = visit(service)
        page.locator("#text").fill("Once" * 300)
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#text-result")).to_contain_text("without the beginning")
        assert page.locator("#text").input_value().startswith("Once" * 300 + "word")


def test_a_base_model_continues_a_text(tmp_path: Path, visit: Any) -> None:
    with live(write_tokenizer(tmp_path, form=None)) as service:
        page = visit(service)
        expect(page.locator("#text")).to_be_visible()
        page.locator("#text").fill("Once")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#text-result")).to_have_text(re.compile(r"256 tokens · [\d,.]+ tokens/s"))
        assert page.locator("#text").input_value() == ("Once" + "word " * 52)[:260]
        page.get_by_role("button", name="Undo").click()
        assert page.locator("#text").input_value() == "Once"
        page.locator("#text").fill("SLOW SAY one two three four five six")
        page.keyboard.press("Control+Enter")
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Continue")).to_be_visible()
        page.reload()
        expect(page.locator("#text")).to_have_value(re.compile("^SLOW SAY one"))
        page.get_by_role("button", name="New conversation").click()
        page.get_by_role("button", name="Chat", exact=True).click()
        expect(page.locator("#base-hint")).to_be_visible()


def test_code_is_copied(server: Live, visit: Any) -> None:
    page = visit(server)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    send(page, "SAY See:\n```py\nif a < b:\n    <b>\n```")
    page.get_by_role("button", name="Copy code").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "if a < b:\n    <b>"


def test_on_a_phone(server: Live, visit: Any) -> None:
    page = visit(server, **PHONE)
    expect(page.locator("#model")).to_have_text("gossamer")
    page.get_by_label("Message", exact=True).fill("SAY " + "long" * 100 + "\n```\n" + "code " * 60 + "\n```\n")
    page.get_by_label("Message", exact=True).press("Enter")  # ends the line here
    expect(page.locator(".message")).to_have_count(0)
    page.get_by_role("button", name="Send").tap()
    expect(page.locator("#send")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.locator("#sidebar")).to_be_hidden()
    page.get_by_role("button", name="List of conversations").tap()
    page.locator("#conversations button").tap()
    expect(page.locator("#sidebar")).to_be_hidden()


def test_everything_has_a_name(server: Live, visit: Any) -> None:
    """Every control can be told apart by a screen reader and reached by keyboard, and every dialog is named."""
    page = visit(server)
    send(page, "SAY a\n```\nb\n```\n|a|b|\n|-|-|\n|c|d|")
    unnamed = """() => [...document.querySelectorAll(
            "button, input:not([type=file]), textarea, select, dialog, nav, article, #transcript")]
        .filter(e => !e.getAttribute("aria-label") && !e.getAttribute("aria-labelledby"))
        .filter(e => !e.labels?.length && !e.textContent.trim())
        .map(e => e.outerHTML)"""
    assert page.evaluate(unnamed) == []
    identifiers = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(identifiers)) == len(identifiers)
    page.keyboard.press("Control+/")
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#shortcuts")).to_be_hidden()
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_two_tabs(server: Live, visit: Any) -> None:
    page = visit(server)
    send(page, "SAY one")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".message")).to_have_count(2)
    send(page, "SAY two")
    expect(other.locator(".message")).to_have_count(4)
    assert texts(other) == ["SAY one", "one", "SAY two", "two"]
