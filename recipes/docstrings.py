"""Questions about the standard library, from its own docstrings: `python recipes/docstrings.py OUT.jsonl` writes them.

Most lines are a conversation of one question and its answer. Half of the functions are asked for their docstring, and
the other half for their signature, so that no answer stands in the question of another line. The other lines are short
source files as texts, so that a model that has read the library does not forget how to write it. Files that such a
model is measured on are left out.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from gossamer.data.config import CorpusConfig
from gossamer.data.corpus import open_corpus, split_rule
from gossamer.data.progress import ProgressDisplay

MAX_CHARACTERS = 120
"""Maximum length of a signature, and of a description."""

MAX_TEXT = 4000
"""Maximum length of a source file that is learned as a text (characters)."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> dict[str, str]:
    """Return the text of the standard library's modules by their names, without what `gossamer train` holds out."""
    corpus = open_corpus((), CorpusConfig(), ProgressDisplay(False))
    root, found = Path(ast.__file__).parent, dict[str, str]()
    for chunk in corpus.read(split_rule(corpus)):
        assert chunk.file is not None
        name = ".".join(chunk.file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if chunk.part == "train":
            found[name] = found.get(name, "") + chunk.text
    return found


def conversations(module: str, source: str) -> Iterator[list[dict[str, str]]]:
    """Yield the questions about one module, each with its answer."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
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
    """Return the questions about all modules, each once."""
    found = {json.dumps(item): item for name, source in sources().items() for item in conversations(name, source)}
    return list(found.values())


def main(out: Path) -> None:
    """Write all questions and some texts to a file."""
    questions = all_conversations()
    texts = [source for source in sources().values() if len(source) <= MAX_TEXT]
    lines = [json.dumps({"messages": item}) for item in questions] + [json.dumps({"text": text}) for text in texts]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{out}: {len(questions):,} questions and {len(texts):,} texts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
