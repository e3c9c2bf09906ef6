"""The files of a tokenizer: where `tokenizer.json` lies, and what the files beside it say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tokenizers
from typing_extensions import TypedDict  # Python 3.11 has one that pydantic cannot read

from gossamer import reading
from gossamer.errors import UserError, did_you_mean
from gossamer.typed import Range, convert

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
_TokenId = Annotated[int, Range(0, (1 << 31) - 1)]


def find_tokenizer(folder: str | Path) -> Path:
    """Return the `tokenizer.json` of a Hugging Face directory or of a run, or the file if it is named itself.

    Raises:
        UserError: there is no such file.
    """
    place = reading.user_path(folder)
    candidates = [place / "tokenizer.json", place / "model" / "tokenizer.json"] if place.is_dir() else [place]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None and place.exists():
        raise UserError(f"{folder}: holds no tokenizer.json; name a run folder or a Hugging Face directory that does")
    if file is None:
        hint = (
            did_you_mean(str(folder), ["bpe", "char"])
            or "; give 'bpe', 'char', a run folder or a Hugging Face directory"
        )
        raise UserError(f"{folder}: no such tokenizer{hint}")
    return file


TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The names that tokenizer_config.json has for tokens."""


class _Token(TypedDict):
    """A token with its settings, as some files write it."""

    content: str


class _TokenNames(TypedDict, total=False):
    """The part of tokenizer_config.json and special_tokens_map.json that is read; they may hold anything else."""

    eos_token: str | _Token | None
    bos_token: str | _Token | None


def read_if_present(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds, empty if there is no file.

    Raises:
        UserError: the file holds something else.
    """
    return reading.read_object(path, remedy="mend the file") if path.is_file() else {}


def read_token_names(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file that names tokens, empty if there is no file.

    Raises:
        UserError: the file holds something else, or a token is neither a text nor an object with one.
    """
    found = read_if_present(path)
    reading.checked(found, _TokenNames, str(path), "mend the file")
    return found


def token_text(value: Any) -> str | None:
    """Return the text of a token that a file names, with or without its settings; None if the value is no token."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def find_eot_token(folder: Path, config: dict[str, Any], core: tokenizers.Tokenizer, default: str) -> str:
    """Return the end-of-sequence token that the files of a folder name, else `default` if it is in the vocabulary.

    Raises:
        UserError: no token is named, and the vocabulary lacks `default`.
    """
    for names in (config, read_token_names(folder / "special_tokens_map.json")):
        token = token_text(names.get("eos_token"))
        if token is not None:
            return token
    for index in end_ids(folder):
        token = core.id_to_token(index)
        if token is not None:
            return token
    if core.token_to_id(default) is not None:
        return default
    raise UserError(f"{folder}: its tokenizer names no eos_token; add one to tokenizer_config.json")


def read_chat_template_files(folder: Path) -> dict[str, str]:
    """Return the chat templates that lie in files beside a tokenizer, by name.

    `chat_template.jinja` is the template named default, and `additional_chat_templates/NAME.jinja` are the others, as
    transformers has written them since 4.51.

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
    """Write chat templates as files that `read_chat_template_files` reads."""
    for name, text in templates.items():
        path = folder / TEMPLATE_FILE if name == "default" else folder / TEMPLATE_FOLDER / f"{name}.jinja"
        assert path.name in (TEMPLATE_FILE, f"{name}.jinja"), "a template's name is not a path"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def chat_templates_of(value: Any) -> dict[str, str]:
    """Return the chat templates in the `chat_template` of a tokenizer_config.json: one text, or a list of named ones.

    Raises:
        UserError: the value is neither.
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


def prefix_ids_of(post_processor: Any) -> tuple[int, ...]:
    """Return the ids that a tokenizer.json puts before every text, as transformers does.

    Args:
        post_processor: the library's object; None if the tokenizer has none, and puts nothing before a text
    """
    if post_processor is None:
        return ()
    return _prefix(reading.parse_json(post_processor.__getstate__().decode(), "the tokenizer"))


def _prefix(spec: dict[str, Any]) -> tuple[int, ...]:
    if spec["type"] == "Sequence":
        parts = [_prefix(part) for part in spec["processors"]]
        return tuple(index for part in reversed(parts) for index in part)  # a later processor puts its ids in front
    if spec["type"] in ("BertProcessing", "RobertaProcessing"):
        return (spec["cls"][1],)
    ids: list[int] = []
    for part in spec.get("single", ()):
        if "Sequence" in part:
            break
        ids += spec["special_tokens"][part["SpecialToken"]["id"]]["ids"]
    return tuple(ids)


def end_ids(folder: Path) -> tuple[int, ...]:
    """Return the tokens that end an answer, as the files of a checkpoint name them, generation_config.json first.

    Those of config.json count as well: transformers uses them if the other file is missing, and training tools write a
    new end token into either file. An id beyond the vocabulary of the network is ignored.

    Raises:
        UserError: a file holds no JSON object, or something that is not a token id.
    """
    network = read_if_present(folder / "config.json")
    inner = network.get("text_config")  # the language model of a checkpoint that also reads images
    inner = inner if isinstance(inner, dict) else {}
    size = network.get("vocab_size", inner.get("vocab_size"))
    ids: dict[int, None] = {}
    for file, config in (
        ("generation_config.json", read_if_present(folder / "generation_config.json")),
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
