"""Where a model lies, in a run's folder or in a Hugging Face directory itself, and what its config.json says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gossamer.errors import UserError, shorten
from gossamer.hub.quantization import Block, read_block
from gossamer.model.config import ModelConfig
from gossamer.model.config_json import MTP_KEY, keys_not_for_text, language_model, promised_mtp_layers
from gossamer.reading import read_object, user_path

CONFIG = "config.json"
ADAPTER = "adapter"  # of a run that has trained one, in place of `model`
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's
RUN_CONFIG = "config.yaml"  # the recipe in a run's folder


@dataclass(frozen=True)
class StoredConfig:
    """What the config.json of a checkpoint says.

    Attributes:
        network: the language model
        mtp_layers: how many layers of multi-token prediction are promised, which may be more than the files hold
        block: rows and columns of a block of FP8 weights; None: the checkpoint is not quantized
        not_for_text: keys that are not read since they cannot matter for text
    """

    network: ModelConfig
    mtp_layers: int
    block: Block | None
    not_for_text: list[str]


def read_config(folder: Path) -> StoredConfig:
    """Return what a model's config.json says.

    Raises:
        UserError: it cannot be read, or describes what gossamer does not compute; the line names the file.
    """
    file = folder / CONFIG
    values = read_object(file)
    try:
        inner = language_model(values)
        layers = promised_mtp_layers(inner)
        network = ModelConfig.from_dict(inner | {MTP_KEY: min(layers, 1)})
        return StoredConfig(network, layers, read_block(values), keys_not_for_text(values))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file."""
    return path.suffix.lower() == ".gguf" and path.is_file()


def find_model(path: str | Path, of_any_kind: bool = False) -> Path:
    """Return the folder of a model: `model/` or `adapter/` of a run's folder, or a Hugging Face directory itself.

    An adapter's folder is that of a model if config.json lies in it; the weights are its base's, and what it adds. That
    of a GGUF file lies in the cache and holds all but the weights (see `gossamer/hub/gguf_folder.py`).

    Args:
        path: the folder of a run, a Hugging Face directory, or a GGUF file
        of_any_kind: whether models that gossamer does not compute are found, too

    Raises:
        UserError: there is no such folder, no model in it, or one of another architecture, which the message says
            before anything else that may be wrong with it.
    """
    folder = user_path(path)
    if is_gguf(folder):
        from gossamer.hub.gguf_folder import gguf_folder  # it needs the tokenizers' library

        return gguf_folder(folder)
    if (adapter := folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file():
        base = shorten(read_object(adapter).get("base_model_name_or_path"))
        raise UserError(
            f"{path}: holds an adapter ({ADAPTER_CONFIG}) of the model {base}, no model; serve it beside that one "
            f"with: gossamer serve BASE --adapter NAME={path}"
        )
    for candidate in (folder, folder / "model", folder / ADAPTER):
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


def find_adapter(path: str | Path) -> Path:
    """Return the folder of an adapter: `adapter/` of a run's folder, or PEFT's folder itself.

    Raises:
        UserError: there is none.
    """
    folder = user_path(path)
    for candidate in (folder, folder / ADAPTER):
        if (candidate / ADAPTER_CONFIG).is_file():
            return candidate
    raise UserError(f"{path}: holds no adapter ({ADAPTER_CONFIG}); name the folder of a tuned run, or PEFT's")


def base_of(folder: Path) -> str | None:
    """Return the path of the base of an adapter, as it stands there; None for a folder that holds no adapter.

    Raises:
        UserError: the adapter does not name its base.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return None
    base = read_object(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{file}: does not name the model that the adapter is for (base_model_name_or_path)")
    return base


def is_of_a_run(path: str | Path) -> bool:
    """Whether a model was trained here, and not read from a Hugging Face directory: an adapter's base is asked."""
    folder = find_model(path)
    base = base_of(folder)
    return folder == user_path(path) / "model" if base is None else is_of_a_run(base)
