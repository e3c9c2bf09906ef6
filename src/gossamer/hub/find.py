"""Where a model lies, in a run's folder or in a Hugging Face directory itself, and what its config.json says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gossamer.errors import UserError
from gossamer.model.config import ModelConfig
from gossamer.reading import read_object, user_path

CONFIG = "config.json"
RUN_CONFIG = "config.yaml"  # the recipe in a run's folder


def read_config(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """Return what a model's config.json says, as it stands there and as a `ModelConfig`.

    Raises:
        UserError: it cannot be read, or describes what gossamer does not compute; the line names the file.
    """
    file = folder / CONFIG
    values = read_object(file)
    if "quantization_config" in values:
        raise UserError(f"{file}: a quantized checkpoint; gossamer reads float32, bfloat16 and float16 ones")
    try:
        return values, ModelConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def find_model(path: str | Path, of_any_kind: bool = False) -> Path:
    """Return the folder of a model: `model/` of a run's folder, or a Hugging Face directory itself.

    Args:
        path: the folder of a run, or a Hugging Face directory
        of_any_kind: whether models that gossamer does not compute are found, too

    Raises:
        UserError: there is no such folder, no model in it, or one of another architecture, which the message says
            before anything else that may be wrong with it.
    """
    folder = user_path(path)
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file():
            if not of_any_kind:
                read_config(candidate)
            return candidate
    if (folder / RUN_CONFIG).is_file():
        raise UserError(f"{path}: this run holds no model yet; continue it with: gossamer train --out {path} --resume")
    if folder.is_dir():
        raise UserError(f"{path}: holds no {CONFIG}; name a run's folder or a Hugging Face directory")
    if folder.exists():
        raise UserError(f"{path}: is a file; name the folder of the run or the Hugging Face directory it lies in")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise UserError(f"{path}: no such folder; a model of the Hub comes with: hf download {path} --local-dir DIR")
    raise UserError(f"{path}: no such folder; name a run or a Hugging Face directory")
