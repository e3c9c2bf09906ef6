"""Where the model is: in a run's folder, or the Hugging Face directory itself; and what its config.json says."""

from __future__ import annotations

import re
from pathlib import Path

from gossamer.errors import UserError
from gossamer.reading import user_path

CONFIG = "config.json"


def find_model(path: str | Path) -> Path:
    """A run's folder gives its model/ folder, a Hugging Face directory itself.

    Raises:
        UserError: there is no such folder, or no model in it.
    """
    folder = user_path(path)
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    if (folder / "config.yaml").is_file():
        raise UserError(f"{path}: this run holds no model yet; continue it with: gossamer train --out {path} --resume")
    if folder.is_dir():
        raise UserError(f"{path}: holds no {CONFIG}; name a run's folder or a Hugging Face directory")
    if folder.exists():
        raise UserError(f"{path}: is a file; name the folder of the run or the Hugging Face directory it lies in")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise UserError(f"{path}: no such folder; a model of the Hub comes with: hf download {path} --local-dir DIR")
    raise UserError(f"{path}: no such folder; name a run or a Hugging Face directory")
