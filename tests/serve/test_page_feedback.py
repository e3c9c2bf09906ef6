"""Ratings on the chat page: from a thumb to a line of the server's file, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import PHONE, send, texts
from live_service import Live, live
from tuned_runs import begin, make_base, values_of

expect = pytest.importorskip("playwright.sync_api").expect


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback") / "ratings.jsonl"


@pytest.fixture(scope="module")
def rated(folder: Path, ratings: Path) -> Iterator[Live]:
    with live(folder, feedback=ratings) as service:
        yield service


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name).last


def test_a_thumb_becomes_a_line_and_can_be_changed_and_taken_back(rated: Live, ratings: Path, visit: Any) -> None:
    page = visit(rated)
    expect(page.locator("#feedback-hint")).to_contain_text(str(ratings))
    page.keyboard.press("Control+,")
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Reasoning").select_option("on")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_role("button", name="Save").click()
    send(page, "SAY one\n</think>\n\ntwo")
    start = len(lines(ratings))
    up, down, told = button(page, "Good answer"), button(page, "Bad answer"), page.locator(".rated > p")
    expect(up).to_have_attribute("aria-pressed", "false")
    expect(page.get_by_role("button", name="Note on this answer")).to_be_hidden()
    up.focus()
    page.keyboard.press("Enter")
    expect(told).to_have_text(f"Kept in {ratings} on the server, with the conversation before it.")
    expect(page.locator("#announcements")).to_contain_text("Kept in")
    expect(up).to_have_attribute("aria-pressed", "true")
    expect(up).to_be_focused()
    first = lines(ratings)[start]
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert first["completion"] == [{"role": "assistant", "content": "two", "reasoning_content": "one"}]
    assert first["label"] is True and first["note"] == "" and first["sampling"]["temperature"] == 0.5

    button(page, "Note on this answer").click()
    page.get_by_role("textbox", name="Note on this answer").fill("<b>well</b> said")
    page.keyboard.press("Enter")
    expect(page.locator(".note")).to_be_hidden()
    expect(button(page, "Note on this answer")).to_be_focused()
    down.click()
    expect(down).to_have_attribute("aria-pressed", "true")
    expect(up).to_have_attribute("aria-pressed", "false")
    page.reload()  # a rating stays with its answer
    expect(down).to_have_attribute("aria-pressed", "true")
    down.click()
    expect(told).to_have_text("The rating is taken back.")
    found = lines(ratings)[start:]
    assert [line["label"] for line in found] == [True, True, False, None]
    assert [line["note"] for line in found] == ["", "<b>well</b> said", "<b>well</b> said", ""]
    assert {line["rating_id"] for line in found} == {first["rating_id"]}


def test_only_whole_answers_can_be_rated_each_for_itself(rated: Live, ratings: Path, visit: Any) -> None:
    page = visit(rated)
    send(page, "SAY one")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".branches span")).to_have_text("2/2")
    start = len(lines(ratings))
    button(page, "Bad answer").click()
    expect(page.locator(".rated > p")).to_contain_text("Kept in")
    page.get_by_role("button", name="Earlier version").click()
    expect(button(page, "Bad answer")).to_have_attribute("aria-pressed", "false")
    button(page, "Good answer").click()
    expect(page.locator(".rated > p")).to_contain_text("Kept in")
    found = lines(ratings)[start:]
    assert [line["label"] for line in found] == [False, True] and found[0]["rating_id"] != found[1]["rating_id"]
    send(page, "SLOW please", wait=False)
    expect(page.locator(".assistant article > .prose").last).to_contain_text("word")
    page.keyboard.press("Escape")
    expect(page.locator(".assistant .hint").last).to_have_text("Stopped.")
    expect(page.locator(".rating:visible")).to_have_count(1)
    rated.until_idle()


def test_a_rating_that_is_not_kept_says_so(rated: Live, visit: Any) -> None:
    page = visit(rated)
    send(page, "SAY one")
    error = {"error": {"message": "the rating was not kept: the disk is full", "code": "not_kept"}}
    page.route("**/feedback", lambda route: route.fulfill(status=507, json=error))
    button(page, "Good answer").click()
    expect(page.locator(".rated .problem")).to_contain_text("the disk is full")
    expect(button(page, "Good answer")).to_have_attribute("aria-pressed", "false")
    page.unroute("**/feedback")
    button(page, "Good answer").click()
    expect(page.locator(".rated .hint")).to_contain_text("Kept in")


def test_without_the_option_nothing_can_be_rated(server: Live, visit: Any) -> None:
    page = visit(server)
    send(page, "SAY one")
    assert texts(page)[1] == "one"
    expect(page.locator(".rating")).to_be_hidden()
    expect(page.locator("#feedback-hint")).to_be_hidden()


def test_on_a_phone(rated: Live, visit: Any) -> None:
    page = visit(rated, **PHONE)
    expect(page.locator("#model")).to_have_text("gossamer")
    page.get_by_label("Message", exact=True).fill("SAY one")
    page.get_by_role("button", name="Send").tap()
    button(page, "Bad answer").tap()
    button(page, "Note on this answer").tap()
    page.get_by_role("textbox", name="Note on this answer").fill("short")
    page.get_by_role("button", name="Keep note").tap()
    expect(page.locator(".note")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_from_a_thumb_to_a_tuned_model(visit: Any, tmp_path: Path) -> None:
    base, file = make_base(tmp_path / "base"), tmp_path / "ratings.jsonl"
    with live(base, feedback=file) as service:
        page = visit(service)
        for answer, thumb in (("yes.", "Good answer"), ("no no.", "Bad answer")):
            page.get_by_role("button", name="New conversation").click()
            send(page, f"SAY {answer}")
            button(page, thumb).click()
            expect(page.locator(".rated > p")).to_contain_text("Kept in")
    verdict = begin(values_of(base, file, training__steps=6, tuning__hold_out=0.0), tmp_path / "tuned")
    assert verdict is not None and verdict.after.loss < verdict.before.loss
    assert [(one.wanted, "SAY yes." in one.prompt) for one in verdict.answers] == [("yes.", True)]
