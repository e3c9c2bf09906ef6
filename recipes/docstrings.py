"""Questions about the standard library, from its own docstrings: `python recipes/docstrings.py OUT.jsonl` writes them.

Each line is a conversation of one question and its answer. Half of the functions are asked for their docstring, and the
other half for their signature, so that no answer stands in the question of another line.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from gossamer.data.sources import standard_library

MAX_CHARACTERS = 120
"""Maximum length of a signature, and of a description."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def conversations(path: Path, root: Path) -> Iterator[list[dict[str, str]]]:
    """Yield the questions about one source file, each with its answer.

    Args:
        path: the file
        root: the folder that holds the standard library
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    for place, function in _functions(tree, module):
        signature, description = _signature(function), _description(function)
        if signature and description:
            yield _conversation(place, signature, description)


def _functions(node: ast.AST, place: str) -> Iterator[tuple[str, _Function]]:
    """Yield the functions of a module and of its classes, each with the dotted name of where it is."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield place, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{place}.{child.name}")


def _signature(function: _Function) -> str:
    line = f"def {function.name}({ast.unparse(function.args)}):"
    return line if len(line) <= MAX_CHARACTERS and "\n" not in line else ""


def _description(function: _Function) -> str:
    """The first sentence of a docstring, in one line; nothing if there is none that says something by itself."""
    paragraph = " ".join((ast.get_docstring(function) or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!])\s", paragraph)[0]
    is_sentence = sentence[:1].isupper() and sentence.endswith(".") and " " in sentence and "->" not in sentence
    return sentence if is_sentence and len(sentence) <= MAX_CHARACTERS else ""


def _conversation(place: str, signature: str, description: str) -> list[dict[str, str]]:
    digest = hashlib.sha256(f"{place} {signature}".encode()).digest()
    if digest[0] % 2:
        question, answer = f"What does this function of {place} do?\n\n{signature}", description
    else:
        question, answer = f"Which function of {place} does this?\n\n{description}", signature
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def all_conversations() -> list[list[dict[str, str]]]:
    """Return the questions about all source files of the standard library, each once."""
    root = Path(ast.__file__).parent
    found = {json.dumps(item): item for path, _ in standard_library() for item in conversations(path, root)}
    return list(found.values())


def main(out: Path) -> None:
    """Write all conversations to a file."""
    found = all_conversations()
    lines = [json.dumps({"messages": item}) + "\n" for item in found]
    out.write_text("".join(lines), encoding="utf-8")
    print(f"{out}: {len(found):,} questions")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
