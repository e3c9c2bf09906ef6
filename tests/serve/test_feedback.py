"""Ratings: what is kept of a post, what is refused, and that every line of the file is whole or not there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.data.chat.records import read_records
from gossamer.errors import UserError
from gossamer.reading import parse_json
from gossamer.serve import feedback as feedback_module
from gossamer.serve.feedback import MAX_LINE, FeedbackFile
from live_service import Live, live

HI = [{"role": "user", "content": "SAY hi"}]
GOOD = {"messages": HI, "completion": "hi", "label": True}
RATING = {"messages": HI, "completion": [{"role": "assistant", "content": "hi"}], "label": True}


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes()
    assert text == b"" or text.endswith(b"\n")
    return [parse_json(line, "a line") for line in text.splitlines()]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback") / "ratings.jsonl"


@pytest.fixture(scope="module")
def rated(folder: Path, kept: Path) -> Iterator[Live]:
    with live(folder, feedback=kept) as service:
        yield service


def newest(path: Path) -> dict[str, Any]:
    return lines(path)[-1]


def test_a_rating_is_one_line_that_says_what_was_rated(rated: Live, kept: Path) -> None:
    answer = rated.post(
        "/feedback",
        {"messages": [{"role": "system", "content": "Be brief."}, *HI], "label": False, "note": "zu kurz, ✓",
         "completion": [{"role": "assistant", "content": "hi", "reasoning_content": "hm"}],
         "sampling": {"temperature": 0.5, "stop": "end"}},
    )  # fmt: skip
    assert answer.status_code == 200 and answer.json()["object"] == "feedback"
    line = newest(kept)
    assert line.pop("time") > 1.7e9 and len(line["model"].pop("fingerprint")) == 32
    assert line == {
        "messages": [{"role": "system", "content": "Be brief."}, *HI],
        "completion": [{"role": "assistant", "content": "hi", "reasoning_content": "hm"}],
        "label": False,
        "model": {"name": "gossamer"},
        "sampling": {"temperature": 0.5, "stop": "end"},
        "note": "zu kurz, ✓",
        "rating_id": answer.json()["rating_id"],
    }
    assert rated.get("/v1/models").json()["data"][0]["feedback"] == str(kept)


def test_what_is_kept_is_what_tuning_reads(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "ratings.jsonl"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    called = [{"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]}]
    with live(folder, feedback=path) as service:
        first = service.post("/feedback", GOOD).json()["rating_id"]
        service.post("/feedback", GOOD | {"label": False, "rating_id": first})
        parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
        service.post("/feedback", {"messages": parts, "tools": [tool], "completion": called, "label": True})
        taken_back = service.post("/feedback", GOOD).json()["rating_id"]
        service.post("/feedback", GOOD | {"label": None, "rating_id": taken_back})
    records = read_records([str(path)])
    assert records.method == "kto" and not records.ignored_keys
    changed, with_tools = records.records
    assert changed.label is False and changed.completions[0].messages == tuple(RATING["completion"])
    assert with_tools.label is True and with_tools.messages[0]["content"] == "ab" and with_tools.tools is not None
    (answer,) = with_tools.completions[0].messages
    assert answer["reasoning_content"] == "hm" and answer["tool_calls"][0]["function"]["arguments"] == {"a": 1}


def test_a_later_rating_has_the_same_identifier(rated: Live, kept: Path) -> None:
    first = rated.post("/feedback", GOOD).json()["rating_id"]
    assert newest(kept)["completion"] == RATING["completion"] and newest(kept)["label"] is True
    assert rated.post("/feedback", GOOD | {"label": None, "rating_id": first}).json()["rating_id"] == first
    assert newest(kept)["label"] is None and newest(kept)["rating_id"] == first
    assert rated.post("/feedback", GOOD).json()["rating_id"] != first


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"label": "yes"}, 400),
        ({"label": 1}, 400),
        ({"completion": []}, 400),
        ({"completion": [{"role": "user", "content": "hi"}]}, 400),
        ({"completion": RATING["completion"] * 2}, 400),
        ({"completion": [{"role": "assistant", "tool_calls": [CALL]}]}, 400),
        ({"completion": "\ud800"}, 400),
        ({"messages": []}, 400),
        ({"sampling": {"heat": 1}}, 400),
        ({"rating_id": "../etc"}, 400),
        ({"note": "n" * 10_001}, 400),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": float("nan")}}}]}, 400),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": "\udfff"}}}]}, 400),
        ({"path": "elsewhere"}, 400),
        ({"model": "gpt-5"}, 404),
        ({"completion": "a" * MAX_LINE}, 413),
    ],
)
def test_what_is_refused_leaves_no_trace(rated: Live, kept: Path, change: dict[str, Any], status: int) -> None:
    kept.touch()
    before = kept.read_bytes()
    body = json.dumps(GOOD | change)
    answer = rated.post("/feedback", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and "\n" not in answer.json()["error"]["message"], answer.text
    assert kept.read_bytes() == before


def test_a_body_without_a_length_is_measured_too(rated: Live) -> None:
    head = {"Content-Type": "application/json"}
    assert rated.post("/feedback", content=(b" " * 2**19 for _ in range(4)), headers=head).status_code == 413


def test_posts_at_the_same_time_are_all_kept_whole(rated: Live, kept: Path) -> None:
    def post(number: int) -> str:
        body = GOOD | {"completion": str(number) * 2000, "note": str(number)}
        return str(rated.post("/feedback", body).json()["rating_id"])

    with ThreadPoolExecutor(8) as pool:
        identifiers = set(pool.map(post, range(48)))
    found = {line["rating_id"]: line for line in lines(kept) if line["rating_id"] in identifiers}
    assert len(found) == 48
    assert all(line["completion"][0]["content"] == line["note"] * 2000 for line in found.values())


def test_without_the_option_the_path_says_so(server: Live) -> None:
    for body in (GOOD, {"nonsense": 1}):
        answer = server.post("/feedback", body)
        assert answer.status_code == 404 and "--feedback FILE" in answer.json()["error"]["message"]
    assert server.get("/v1/models").json()["data"][0]["feedback"] is None


def test_a_key_is_needed_as_for_the_api(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-of-sixteen-and-more")
    with live(folder, keys=keys, feedback=tmp_path / "ratings.jsonl") as service:
        assert service.post("/feedback", GOOD).status_code == 401
        head = {"Authorization": "Bearer key-of-sixteen-and-more"}
        assert service.post("/feedback", GOOD, headers=head).status_code == 200
        described = service.get("/openapi.json", headers=head).json()["paths"]["/feedback"]["post"]
        assert described["security"] == [{"key": []}] and "507" in described["responses"]
    assert len(lines(tmp_path / "ratings.jsonl")) == 1


def test_a_full_disk_is_one_clear_error(rated: Live, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rated.post("/feedback", GOOD)
    before = kept.read_bytes()
    monkeypatch.setattr(feedback_module, "os", _FullDisk(20))
    answer = rated.post("/feedback", GOOD)
    assert answer.status_code == 507 and "the disk is full" in answer.json()["error"]["message"]
    assert kept.read_bytes() == before
    monkeypatch.undo()
    assert rated.post("/feedback", GOOD).status_code == 200
    assert len(lines(kept)) == len(before.splitlines()) + 1


class _FullDisk:
    """The module `os` on a disk with room for a few bytes."""

    def __init__(self, room: int) -> None:
        self._room = room

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, data: bytes) -> int:
        if self._room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = os.write(descriptor, data[: self._room])
        self._room -= count
        return count


def test_several_processes_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "ratings.jsonl"
    program = (
        "import sys; from gossamer.serve.feedback import FeedbackFile; file = FeedbackFile(sys.argv[1])\n"
        "for n in range(40): file.append({'messages': [], 'label': True, 'note': sys.argv[2] * 3000, 'n': n})"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "ab"]
    assert [process.wait(120) for process in running] == [0, 0]
    found = lines(path)
    for name in "ab":
        assert [line["n"] for line in found if line["note"] == name * 3000] == list(range(40))
    assert len(found) == 80


def test_what_a_killed_process_left_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "ratings.jsonl"
    file = FeedbackFile(path)
    file.append(RATING)
    whole = path.read_bytes()
    for left in (whole[:-9], b"{", b"\0\0\0", whole[: len(whole) // 2]):
        path.write_bytes(whole + left)
        file.append(RATING)
        assert path.read_bytes() == whole * 2
    path.write_bytes(whole + whole[:-1])  # an editor that writes no last line end
    file.append(RATING)
    assert path.read_bytes() == whole * 3


def test_other_files_are_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("Shopping list\n- flour\n", '{"messages": 1}\n', "[1]\n", "\xff\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="its first line is no rating"):
            FeedbackFile(path)
        assert path.read_text() == text
    for place in (tmp_path, tmp_path / "no folder" / "ratings.jsonl", Path("/dev/null")):
        with pytest.raises(UserError, match=r"--feedback|move it away"):
            FeedbackFile(place)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25)  # each line waits for the disk
@given(ratings=st.lists(st.fixed_dictionaries({"messages": JSON, "label": JSON}), max_size=2))
def test_what_is_written_is_read(ratings: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "ratings.jsonl"
    file = FeedbackFile(path)
    taken = []
    for rating in ratings:
        try:
            file.append(rating)
            taken.append(rating)
        except ValueError:  # NaN, infinities, halves of surrogate pairs, numbers of hundreds of digits
            assert any(mark in json.dumps(rating) for mark in ("NaN", "Infinity", "\\ud")) or len(str(rating)) > 300
    assert lines(path) == taken
    FeedbackFile(path)
