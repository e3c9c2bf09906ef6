"""The files of a tokenizer: where ``tokenizer.json`` lies, and what those beside it say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tokenizers
from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer import reading
from gossamer.errors import UserError, nearest
from gossamer.typed import Range, convert

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
_TokenId = Annotated[int, Range(0, (1 << 31) - 1)]


def find_tokenizer(folder: str | Path) -> Path:
    """The ``tokenizer.json`` of a Hugging Face directory or of a run's ``model/``, or the file that is named itself.

    Raises:
        UserError: there is none.
    """
    place = reading.user_path(folder)
    candidates = [place / "tokenizer.json", place / "model" / "tokenizer.json"] if place.is_dir() else [place]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None and place.exists():
        raise UserError(f"{folder}: holds no tokenizer.json; name a run folder or a Hugging Face directory that does")
    if file is None:
        hint = nearest(str(folder), ["bpe", "char"]) or "; give 'bpe', 'char', a run folder or a Hugging Face directory"
        raise UserError(f"{folder}: no such tokenizer{hint}")
    return file


class _Token(TypedDict):
    """A token with its settings, as some files spell it."""

    content: str


class _TokenNames(TypedDict, total=False):
    """What is read of tokenizer_config.json and special_tokens_map.json; they may hold anything beside it."""

    eos_token: str | _Token | None
    bos_token: str | _Token | None


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds, nothing where there is none (UserError: it holds no JSON object)."""
    return reading.read_object(path, remedy="mend the file") if path.is_file() else {}


def read_token_names(path: Path) -> dict[str, Any]:
    """The same of a file that names tokens (UserError: a token is neither a text nor an object with one)."""
    found = read_json(path)
    reading.checked(found, _TokenNames, str(path), "mend the file")
    return found


def end_of_text(folder: Path, config: dict[str, Any], core: tokenizers.Tokenizer, usual: str) -> str:
    """The end-of-sequence token that the folder's files name; ``usual`` when they name none and the vocabulary has it.

    Raises:
        UserError: neither is so.
    """
    for names in (config, read_token_names(folder / "special_tokens_map.json")):
        token = names.get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    for index in end_ids(folder):
        token = core.id_to_token(index)
        if token is not None:
            return token
    if core.token_to_id(usual) is not None:
        return usual
    raise UserError(f"{folder}: its tokenizer names no eos_token; add one to tokenizer_config.json")


def read_chat_template_files(folder: Path) -> dict[str, str]:
    """The chat templates that lie beside a tokenizer as files, by name.

    `chat_template.jinja` is the one named default, `additional_chat_templates/NAME.jinja` are the others, as
    transformers writes them since 4.51.

    Raises:
        UserError: a file is not UTF-8 text.
    """
    files = [("default", folder / TEMPLATE_FILE)]
    files += [(path.name.removesuffix(".jinja"), path) for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))]
    found = {}
    for name, path in files:
        if path.is_file():
            found[name] = reading.read_text(path)
    return found


def write_chat_template_files(folder: Path, templates: Mapping[str, str]) -> None:
    """Write what `read_chat_template_files` reads."""
    for name, text in templates.items():
        path = folder / TEMPLATE_FILE if name == "default" else folder / TEMPLATE_FOLDER / f"{name}.jinja"
        assert path.name in (TEMPLATE_FILE, f"{name}.jinja"), "a template's name is no path"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def configured_chat_templates(value: Any) -> dict[str, str]:
    """`chat_template` of a tokenizer_config.json by name: one text, or a list of named ones.

    Raises:
        UserError: it is neither.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    named = [(name, text) for name, text in value.items()] if isinstance(value, dict) else []
    if isinstance(value, list):
        named = [(one.get("name"), one.get("template")) if isinstance(one, dict) else (None, None) for one in value]
    if not named or not all(isinstance(part, str) for pair in named for part in pair):
        raise UserError(
            "tokenizer_config.json: chat_template must be a text or a list of objects with a name and a template; "
            "mend the file"
        )
    return dict(named)


def prefix_of(post_processor: Any) -> tuple[int, ...]:
    """The ids that a tokenizer.json puts before every text, as transformers does.

    Args:
        post_processor: of the library; None: there is none, and nothing is put before a text.
    """
    if post_processor is None:
        return ()
    return _prefix(reading.parse_json(post_processor.__getstate__().decode(), "the tokenizer"))


def _prefix(spec: dict[str, Any]) -> tuple[int, ...]:
    if spec["type"] == "Sequence":
        parts = [_prefix(part) for part in spec["processors"]]
        return tuple(index for part in reversed(parts) for index in part)  # a later one puts its own in front
    if spec["type"] in ("BertProcessing", "RobertaProcessing"):
        return (spec["cls"][1],)
    ids: list[int] = []
    for piece in spec.get("single", ()):
        if "Sequence" in piece:
            break
        ids += spec["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return tuple(ids)


def end_ids(folder: Path) -> tuple[int, ...]:
    """The tokens that end an answer, as a checkpoint's files name them, those of generation_config.json first.

    Those of config.json count as well: transformers takes them where the other file is missing, and tools that train
    write the newest end into either. An end that the network has no token for says nothing.

    Raises:
        UserError: a file holds no JSON object, or something that is no token id.
    """
    network = read_json(folder / "config.json")
    inner = network.get("text_config")  # of a checkpoint that also sees pictures
    inner = inner if isinstance(inner, dict) else {}
    size = network.get("vocab_size", inner.get("vocab_size"))
    ids: dict[int, None] = {}
    for file, config in (
        ("generation_config.json", read_json(folder / "generation_config.json")),
        ("config.json", network),
        ("config.json", inner),
    ):
        value = config.get("eos_token_id")
        for index in value if isinstance(value, list) else [] if value is None else [value]:
            try:
                ids[convert(index, _TokenId, "eos_token_id")] = None
            except UserError as error:
                raise UserError(f"{folder / file}: {error}; mend the file") from None
    return tuple(index for index in ids if type(size) is not int or index < size)
