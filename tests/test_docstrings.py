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


def test_a_question_has_what_it_asks_about(script: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    path = tmp_path / "books" / "__init__.py"
    path.write_text(SOURCE)
    found = list(script["conversations"](path, tmp_path))
    facts = {
        ("books.Shelf", "def put(self, book: str, *, at=0):", "Put a book on the shelf."),
        ("books", "def dust(shelf, /):", "Wipe the dust away."),
    }
    assert len(found) == len(facts)
    for place, signature, description in facts:
        asked_for = [f"What does this function of {place} do?\n\n{signature}", description]
        other_way = [f"Which function of {place} does this?\n\n{description}", signature]
        assert [[message["content"] for message in item] for item in found].count(asked_for) + [
            [message["content"] for message in item] for item in found
        ].count(other_way) == 1
    path.write_text("def broken(:")
    assert list(script["conversations"](path, tmp_path)) == []


def test_both_directions_are_asked(script: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = script["standard_library"]
    some = [item for item in files() if item[0].name in ("argparse.py", "zipfile.py", "pathlib.py", "random.py")]
    script["main"].__globals__["standard_library"] = lambda: iter(some)
    script["main"](tmp_path / "out.jsonl")
    lines = [json.loads(line)["messages"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert f"{len(lines):,} questions" in capsys.readouterr().out
    assert len(lines) > 60 and {tuple(item["role"] for item in line) for line in lines} == {("user", "assistant")}
    kinds = [line[0]["content"].split()[0] for line in lines]
    assert min(kinds.count("What"), kinds.count("Which")) > len(lines) / 4
