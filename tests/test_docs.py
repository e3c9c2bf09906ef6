"""The documents: links lead somewhere, and paths, dotted names, commands and their options exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from gossamer.cli import VERBS
from gossamer.cli.arguments import flags_of, parse
from gossamer.cli.reference import reference
from gossamer.errors import UserError
from gossamer.train.recipe import recipe_options

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "records" / "README.md"]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
FENCED = re.compile(r"^ *```\w*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
PACKAGE = ROOT / "src" / "gossamer"
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
SOURCE = (".py", ".cpp", ".h", ".yaml", ".md")
ELSEWHERE = ("convert_hf_to_gguf.py",)  # files of other projects


def anchors(document: Path) -> set[str]:
    """Names that headings get on the page."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """Words of every command line: those of fenced blocks, and those between backticks."""
    lines = [line for block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *re.findall(r"`([^`]+)`", FENCED.sub("", text))]:
        if re.match(r"(\$ )?([A-Z_]+=\S+ )*(gossamer|python benchmarks/\S+|torchrun)(\s|$)", line):
            words = [word for word in shlex.split(line, comments=True) if word != "…"]
            starts = [word in ("gossamer", "gossamer.cli") or word.startswith("benchmarks/") for word in words]
            if any(starts):
                yield words[starts.index(True) :]


def options(benchmark: Path) -> set[str]:
    """Of the file's parser."""
    calls = [node for node in ast.walk(ast.parse(benchmark.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    return {"--help"} | {str(call.args[0].value) for call in added if isinstance(call.args[0], ast.Constant)}


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text):
        path, _, anchor = "".join(link).partition("#")
        if not path.startswith("https:"):
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_index_links_every_document() -> None:
    index = ROOT / "docs" / "README.md"
    links = re.findall(r"\]\(([^)#]+)\)", index.read_text(encoding="utf-8"))
    linked = {(index.parent / link).resolve() for link in links}
    assert set(index.parent.glob("**/*.md")) - {index} <= linked


@each_document
def test_commands_are_understood(document: Path) -> None:
    for program, *words in commands(document.read_text(encoding="utf-8")):
        if program.endswith(".py"):
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given <= options(ROOT / program), program
        elif words and words[0] != "VERB":
            assert words[0] in VERBS, words
            try:
                parse(words[0], VERBS[words[0]], words[1:])
            except SystemExit:
                assert "--help" in words
            except UserError as error:  # a sentence may name a verb without all that it takes
                assert str(error).startswith("missing ") or str(error).endswith("needs at least one value"), words


def test_the_reference_of_options_is_made_of_their_declarations() -> None:
    """Where this fails, `python -m gossamer.cli.reference > docs/options.md` writes it anew."""
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == reference()


def known_flags() -> dict[str, set[str]]:
    """Every flag of every verb, with its defaults as documents write them."""
    flags: dict[str, set[str]] = {}
    for verb, function in VERBS.items():
        for name, option in flags_of(f"gossamer {verb}", function).all.items():
            default = option.default
            if type(default) in (int, float):
                plain = f"{default:,}" if isinstance(default, int) else f"{default:,g}"
                units = {"seconds": " s"}
                shown = f"{default >> 20} MiB" if option.unit == "bytes" else plain + units.get(option.unit, "")
                flags.setdefault(name, set()).add(shown)
            else:
                flags.setdefault(name, set())
    return flags


@each_document
def test_options_and_their_defaults_are_those_that_are_declared(document: Path) -> None:
    text, flags = FENCED.sub("", document.read_text(encoding="utf-8")), known_flags()
    sections = {name.partition(".")[0] for name in recipe_options() if "." in name}
    for name in re.findall(r"`(?:--)?([a-z]+\.[a-z_]+)(?!\.`)[`. ]", text):
        assert name.partition(".")[0] not in sections or name in flags, name
    for name, default in re.findall(r"`--([\w.-]+)` \((\d[^)]*)\)", text):
        declared = flags[name.replace("-", "_")]
        assert any(re.match(rf"{re.escape(value)}\b", default) for value in declared), (name, default)


WRITTEN = ("runs", "bench", "texts", "certificates", "exported")  # folders that commands write; see .gitignore


def in_backticks(text: str) -> list[str]:
    """The code spans of a document's prose."""
    return re.findall(r"`([^`]+)`", FENCED.sub("", text))


def missing_paths(text: str) -> list[str]:
    """Paths in backticks of which the first folder exists, in the repository or in the package, but the rest does not.

    The name of a source file without a folder is missing if no file of the repository has it.
    """
    paths = [span for span in in_backticks(text) if PATH.fullmatch(span) and span not in ELSEWHERE]
    missing = []
    for path in paths:
        first, _, rest = path.partition("/")
        if first in WRITTEN:
            continue
        places = [place for place in (ROOT, ROOT / "src", PACKAGE) if (place / first).is_dir()]
        if rest and places:
            found = any((place / path).is_file() or any((place / path).glob("*.*")) for place in places)
        elif path.endswith(SOURCE):
            found = not rest and any(path == file.name for file in files_of_the_repository())
        else:
            continue
        if not found:
            missing.append(path)
    return missing


@lru_cache
def files_of_the_repository() -> tuple[Path, ...]:
    folders = ("src", "tests", "benchmarks", "docs", "recipes", "records")
    return (*ROOT.glob("*"), *(file for folder in folders for file in (ROOT / folder).rglob("*")))


def missing_names(text: str) -> list[str]:
    """Dotted names in backticks that begin with a module of the package but are neither in it nor a recipe's option."""
    modules = {path.stem for path in PACKAGE.iterdir()} | {"gossamer"}
    starts = [re.match(r"(?:--)?(\w+(?:\.\w+)+)(?![\w./])", span) for span in in_backticks(text)]
    names = [start[1] for start in starts if start and not start[1].endswith((*SOURCE, ".html"))]
    judged = [name for name in names if name.partition(".")[0] in modules and name not in recipe_options()]
    return [name for name in judged if not is_attribute(name)]


def is_attribute(name: str) -> bool:
    """Whether a dotted name, with or without the package's own, leads to something in the package."""
    dotted = "gossamer"
    place: object = import_module(dotted)
    for part in name.removeprefix("gossamer.").split("."):
        dotted += f".{part}"
        if hasattr(place, "__path__") and not hasattr(place, part) and find_spec(dotted):
            import_module(dotted)
        if not hasattr(place, part):
            return False
        place = getattr(place, part)
    return True


@each_document
def test_paths_and_names_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not missing_paths(text)
    assert not missing_names(text)


def test_missing_paths_and_names_are_found() -> None:
    there = "`docs/README.md`, `model/config.py`, `test_docs.py`, `runs/mine`, `model.num_experts`, `device.BACKENDS`"
    assert not missing_paths(there) and not missing_names(there)
    gone = "`docs/gone.md`, `model/gone.py`, `gone.py`, `model.gone`, `device.GONE`, `gossamer.gone`"
    assert missing_paths(gone) == ["docs/gone.md", "model/gone.py", "gone.py"]
    assert missing_names(gone) == ["model.gone", "device.GONE", "gossamer.gone"]


def test_commands_are_found() -> None:
    text = "as `gossamer doctor` says\n\n```bash\n$ A_B=c gossamer train --resume \\\n  --out x  # on\nls\n```\n"
    assert list(commands(text)) == [["gossamer", "train", "--resume", "--out", "x"], ["gossamer", "doctor"]]
