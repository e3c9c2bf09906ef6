"""The rooms of the package: imports go down only, in the order that CONTRIBUTING.md states.

`certify` and `tune` train and serve, so they are above both, and nothing but the command line asks for them. What
`certify` knows of exactness and timing, benchmarks and tests share.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gossamer

PACKAGE = Path(gossamer.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


def storeys(text: str) -> list[set[str]]:
    """The rooms of each line of the first block of code, from the bottom up."""
    block = text.split("```")[1]
    return [set(line.split(", ")) for line in reversed(block.strip().splitlines())]


STOREYS = storeys(CONTRIBUTING.read_text(encoding="utf-8"))
HEIGHT = {room: height for height, rooms in enumerate(STOREYS) for room in rooms}


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE), ast.parse(path.read_text(encoding="utf-8"))


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imported_rooms(tree: ast.Module, path: Path) -> Iterator[str]:
    """Rooms that a file imports, wherever the statement stands; the package's own name and version are no room."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "gossamer":
                names = [f"gossamer.{alias.name}" for alias in node.names if alias.name != "__version__"]
            else:
                names = [node.module or ""]
        yield from (name.split(".")[1] for name in names if name.startswith("gossamer."))


def test_every_room_has_its_storey() -> None:
    assert {room(path) for path, _ in modules()} - {"__init__"} == set(HEIGHT)


def test_imports_go_down_only() -> None:
    upward = [
        f"{path} imports gossamer.{target}"
        for path, tree in modules()
        if room(path) != "__init__"
        for target in imported_rooms(tree, path)
        if HEIGHT[target] > HEIGHT[room(path)]
    ]
    assert not upward


def test_rooms_of_a_storey_import_one_another_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path, tree in modules():
        if room(path) != "__init__":
            graph.setdefault(room(path), set()).update(set(imported_rooms(tree, path)) - {room(path)})
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


@pytest.mark.parametrize("target", ["certify", "tune"])
def test_only_the_command_line_certifies_and_tunes(target: str) -> None:
    users = {room(path) for path, tree in modules() if target in imported_rooms(tree, path)}
    assert users <= {target, "cli"}
