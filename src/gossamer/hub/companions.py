"""The files that belong to a model beside its weights, and what config.json says beside the network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gossamer.hub.find import CONFIG
from gossamer.reading import read_object

# Hugging Face's names.
_COMPANIONS = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt "
    "chat_template.jinja additional_chat_templates generation_config.json"
).split()
# Keys of config.json that are about the tokens of generated text, not about the network.
_TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder holds a tokenizer, as one file or as a vocabulary."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def copy_companions(source: Path, folder: Path) -> None:
    """Copy a model's tokenizer, chat templates and generation settings; what the folder has already stays."""
    for name in _COMPANIONS:
        if (folder / name).exists():
            continue
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, copy_function=shutil.copyfile)
        elif (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def token_values(source: Path) -> dict[str, Any]:
    """Return what a model's config.json says about the tokens of generated text."""
    values = read_object(source / CONFIG)
    inner = values.get("text_config")  # of a checkpoint that also sees pictures
    values = (inner if isinstance(inner, dict) else {}) | {key: one for key, one in values.items() if one is not None}
    return {key: values[key] for key in _TOKEN_KEYS if values.get(key) is not None}


def json_text(value: dict[str, Any]) -> str:
    """Return the content of a JSON file as Hugging Face's libraries write it."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
