"""How tokens are sampled where nobody says: as the checkpoint recommends, else by one default for all readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from gossamer.data.tokenizer_files import end_ids
from gossamer.errors import UserError
from gossamer.infer.options import Temperature, TopP
from gossamer.reading import read_object
from gossamer.typed import Range, convert

__all__ = ["SAMPLING", "generation_config", "sampling_for_readers"]

SAMPLING: Mapping[str, float] = {"temperature": 0.8, "top_p": 0.95}
"""The default of `gossamer sample`, `gossamer chat`, the chat page and the samples of a training run, for a checkpoint
that recommends nothing. At temperature 1 the long tail of unlikely tokens derails a small model within a line. The API
does not use it: a program that names no temperature was written for OpenAI's 1."""

_RECOMMENDED = {
    "temperature": Temperature,
    "top_p": TopP,
    "top_k": Annotated[int, Range(-1, (1 << 31) - 1)],  # some write -1 for all tokens
    "min_p": Annotated[float, Range(0, 1)],
    "repetition_penalty": Annotated[float, Range(0, 100, excludes_minimum=True)],
}


def generation_config(folder: Path) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Return what a checkpoint recommends: sampling values, and the tokens that end an answer (see `end_ids`).

    Raises:
        UserError: a file holds no JSON object, or a value that no sampler takes.
    """
    path = folder / "generation_config.json"
    return _sampling(read_object(path, "mend the file") if path.is_file() else {}, path), end_ids(folder)


def _sampling(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    try:
        for name, kind in _RECOMMENDED.items():
            value = config.get(name)
            if name == "top_k" and isinstance(value, float) and value.is_integer():
                value = int(value)
            if value is not None:
                values[name] = convert(value, kind, name)
        if values.get("top_k") == -1:
            values["top_k"] = 0
        is_sampled = convert(config.get("do_sample"), bool | None, "do_sample")
    except UserError as error:
        raise UserError(f"{path}: {error}; mend the file") from None
    return {} if is_sampled is False else values


def sampling_for_readers(recommended: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return keywords of `SamplingParams`: what was given, else what the checkpoint recommends, else `SAMPLING`.

    The values of a checkpoint are not mixed with ours: they were chosen together.

    Args:
        recommended: the values of the checkpoint
        given: the values that the user chose; None stands for no choice
    """
    return {**(recommended or SAMPLING), **{name: value for name, value in (given or {}).items() if value is not None}}
