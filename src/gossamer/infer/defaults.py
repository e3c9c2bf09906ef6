"""How is sampled where nobody says: the checkpoint's word, then the one value for whoever reads the text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossamer.hub.find import read_json

__all__ = ["SAMPLING", "generation_config", "sampling_for_readers"]

SAMPLING: Mapping[str, float] = {"temperature": 0.8, "top_p": 0.95}
"""Of `gossamer sample`, `gossamer chat`, the chat page and the samples of a training run, for a checkpoint that
recommends nothing. At temperature 1 the long tail of unlikely tokens derails a small model within a line. The API has
no part in it: a program that names no temperature was written for OpenAI's 1."""

_RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def generation_config(folder: Path) -> tuple[dict[str, Any], tuple[int, ...]]:
    """What a checkpoint's generation_config.json recommends: sampling values, and the tokens that end an answer.

    Raises:
        UserError: the file holds no JSON object.
    """
    path = folder / "generation_config.json"
    config = read_json(path) if path.is_file() else {}
    ends = config.get("eos_token_id")
    values = {name: config[name] for name in _RECOMMENDED if isinstance(config.get(name), (int, float))}
    if config.get("do_sample") is False:
        values = {}
    return values, tuple(token for token in (ends if isinstance(ends, list) else [ends]) if isinstance(token, int))


def sampling_for_readers(recommended: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Keywords of ``SamplingParams``: what was given and is not None, else what the checkpoint recommends, else ours.

    A checkpoint's values are taken as they stand, not mixed with ours: they were chosen together.
    """
    return {**(recommended or SAMPLING), **{name: value for name, value in (given or {}).items() if value is not None}}
