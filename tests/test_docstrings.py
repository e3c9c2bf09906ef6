"""Questions made from docstrings: what is asked, what is left out, and that no answer stands in another question."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "recipes" / "docstrings.py"
SOURCE = '''
class Shelf:
    def put(self, book: str, *, at=0):
        """Put a book on the
        shelf. It stays there.

        More.
        """

    def empty(self): ...

    def take(self): "take -> book"

async def dust(shelf, /): "Wipe the dust away."

def wordy(a): """Say so much that it would fill more than one line of a page, and then go on as if nobody had to read
    all of it, line after line."""
'''


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_a_question_has_what_it_asks_about(script: dict[str, Any]) -> None:
    found = [[message["content"] for message in item] for item in script["conversations"]("books", SOURCE)]
    facts = {
        ("books.Shelf", "def put(self, book: str, *, at=0):", "Put a book on the shelf."),
        ("books", "def dust(shelf, /):", "Wipe the dust away."),
    }
    assert len(found) == len(facts)
    for place, signature, description in facts:
        asked = [f"What does this function of {place} do?\n\n{signature}", description]
        other_way = [f"Which function of {place} does this?\n\n{description}", signature]
        assert found.count(asked) + found.count(other_way) == 1
    assert list(script["conversations"]("broken", "def broken(:")) == []


def test_both_directions_are_asked_and_short_files_are_texts(
    script: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = script["sources"]()
    some = {name: found[name] for name in sorted(found)[:60]} | {"short": SOURCE}
    script["main"].__globals__["sources"] = lambda: some
    script["main"](tmp_path / "made" / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "made" / "out.jsonl").read_text().splitlines()]
    questions = [line["messages"] for line in lines if "messages" in line]
    texts = [line["text"] for line in lines if "text" in line]
    assert f"{len(questions):,} questions and {len(texts):,} texts" in capsys.readouterr().out
    assert SOURCE in texts and max(map(len, texts)) <= script["MAX_TEXT"]
    assert len(questions) > 60 and {tuple(item["role"] for item in line) for line in questions} == {
        ("user", "assistant")
    }
    kinds = [question[0]["content"].split()[0] for question in questions]
    assert min(kinds.count("What"), kinds.count("Which")) > len(questions) / 4


def test_what_training_holds_out_is_left_out(script: dict[str, Any]) -> None:
    from gossamer.data.config import CorpusConfig
    from gossamer.data.corpus import open_corpus
    from gossamer.data.progress import ProgressDisplay

    corpus = open_corpus((), CorpusConfig(), ProgressDisplay(False))
    held_out = {chunk.text[:200] for chunk in corpus.read("documents") if chunk.part == "validation"}
    assert held_out and not held_out & {source[:200] for source in script["sources"]().values()}
