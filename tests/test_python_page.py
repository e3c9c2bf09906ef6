"""The Python in the documents: the page about it runs as it stands, and what other pages import exists."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import gossamer

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^ *```python\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def blocks(document: Path) -> list[str]:
    return BLOCK.findall(document.read_text(encoding="utf-8"))


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path / "cache"))
    values: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(ROOT / "docs" / "python.md"):
        exec(compile(block, "docs/python.md", "exec"), values)
    assert isinstance(values["text"], str)
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "exported" / "config.json").is_file()


def imported(code: str) -> list[tuple[str, str]]:
    """Modules and names that a block imports from gossamer; nothing of one that is no whole Python."""
    try:
        tree = ast.parse(re.sub(r"^ {3}", "", code, flags=re.MULTILINE) if code.startswith(" ") else code)
    except SyntaxError:
        return []
    found = [(node.module or "", alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             for alias in node.names]  # fmt: skip
    return [pair for pair in found if pair[0].split(".")[0] == "gossamer"]


def resolve(dotted: str) -> None:
    """Import a dotted name: modules as far as they go, then attributes."""
    parts, place = dotted.split("."), gossamer
    for index, part in enumerate(parts[1:], start=2):
        try:
            place = getattr(place, part)
        except AttributeError:
            place = import_module(".".join(parts[:index]))


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_imported_exists(document: Path) -> None:
    for code in blocks(document):
        for module, name in imported(code):
            resolve(f"{module}.{name}")


def test_what_the_page_imports_is_found() -> None:
    assert ("gossamer.infer", "Engine") in imported(blocks(ROOT / "docs" / "engine.md")[0])
    with pytest.raises(ModuleNotFoundError):
        resolve("gossamer.infer.Engines")
