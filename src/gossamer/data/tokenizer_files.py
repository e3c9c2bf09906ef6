"""The files of a tokenizer: where ``tokenizer.json`` lies, and what those beside it say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from gossamer.errors import UserError, nearest


def find_tokenizer(folder: str | Path) -> Path:
    """The ``tokenizer.json`` of a Hugging Face directory or of a run's ``model/``, or the file that is named itself.

    Raises:
        UserError: there is none.
    """
    place = Path(folder).expanduser()
    candidates = [place / "tokenizer.json", place / "model" / "tokenizer.json"] if place.is_dir() else [place]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None and place.exists():
        raise UserError(f"{folder}: holds no tokenizer.json; name a run folder or a Hugging Face directory that does")
    if file is None:
        hint = nearest(str(folder), ["bpe", "char"]) or "; give 'bpe', 'char', a run folder or a Hugging Face directory"
        raise UserError(f"{folder}: no such tokenizer{hint}")
    return file


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds, nothing where there is none (UserError: it holds no JSON object)."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); mend the file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; mend the file")
    return value


def end_of_text(folder: Path, config: dict[str, Any], core: tokenizers.Tokenizer, usual: str) -> str:
    """The end-of-sequence token that the folder's files name; ``usual`` when they name none and the vocabulary has it.

    Raises:
        UserError: neither is so.
    """
    for names in (config, read_json(folder / "special_tokens_map.json")):
        token = names.get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    for name in _ids_of(read_json(folder / "generation_config.json")), _ids_of(read_json(folder / "config.json")):
        for index in name:
            token = core.id_to_token(index)
            if token is not None:
                return token
    if core.token_to_id(usual) is not None:
        return usual
    raise UserError(f"{folder}: its tokenizer names no eos_token; add one to tokenizer_config.json")


def _ids_of(config: dict[str, Any]) -> Iterator[int]:
    ids = config.get("eos_token_id")
    yield from (index for index in (ids if isinstance(ids, list) else [ids]) if isinstance(index, int))
