"""A checkpoint before its weights are read: what its config.json says, and what the headers of its files say."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from gossamer.errors import UserError, shorten
from gossamer.hub.find import ADAPTER_CONFIG, CONFIG, StoredConfig, base_of, find_model, read_config
from gossamer.hub.fp8 import read_scales
from gossamer.hub.gguf_folder import weights_of
from gossamer.hub.gguf_read import gguf_layout, read_gguf
from gossamer.hub.layout import Layout, is_mtp, is_vision, layout_of
from gossamer.hub.quantization import LOAD_INSTEAD
from gossamer.hub.shards import StoredTensor, read_headers
from gossamer.model.config import ModelConfig
from gossamer.reading import user_path

_PACKED = (".qweight", ".qzeros", ".weight_packed")
_PEFT_PREFIX = "base_model.model."
_SECOND_LAYER = re.compile(r"mtp\.layers\.0*[1-9]")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose weights are still in its files.

    Attributes:
        folder: where it is stored: a folder, or a GGUF file
        said: what its config.json says
        config: the network that the files hold: with a multi-token-prediction head if they do
        stored: the tensors of the language model, and the scales of those in FP8, by their names
        scales: the scales of FP8 weights, by the names of the weights
        layout: how the network's tensors are laid out
        vision: names of the tensors of a vision tower, which are not read
        adapters: folders of the adapters that are added to the weights, the first one first
    """

    folder: Path
    said: StoredConfig
    config: ModelConfig
    stored: dict[str, StoredTensor]
    scales: dict[str, Tensor]
    layout: Layout
    vision: list[str]
    adapters: tuple[Path, ...] = ()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read all of a checkpoint but its weights.

    Args:
        path: a run's folder, a Hugging Face directory or a GGUF file; of an adapter, it is the checkpoint of its base

    Raises:
        UserError: there is no model, it has another architecture or quantization, or its files are pickled or damaged.
    """
    folder = find_model(path)
    if (base := base_of(folder)) is not None:
        return _open_base(folder, base)
    if (file := weights_of(folder)) is not None:
        return _open_gguf(file, read_config(folder))
    said, headers = read_config(folder), read_headers(folder)
    stored = {name: tensor for name, tensor in headers.items() if not is_vision(name)}
    try:
        _require_weights_of_a_model(stored)
        layout = layout_of(stored, said.network.model_type)
        config = replace(said.network, num_nextn_predict_layers=_mtp_layers(stored))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    scales = read_scales(stored, said.block)
    return Checkpoint(folder, said, config, stored, scales, layout, [name for name in headers if is_vision(name)])


def _require_weights_of_a_model(names: Collection[str]) -> None:
    """Refuse tensors that are packed by a quantization which config.json does not name, and those of an adapter."""
    for name in names:
        if name.endswith(_PACKED):
            raise UserError(
                f"holds {shorten(name)}, a weight packed as AWQ, GPTQ or compressed-tensors do; gossamer does not "
                f"read it, and config.json does not name it; {LOAD_INSTEAD}"
            )
        if name.startswith(_PEFT_PREFIX):
            raise UserError(
                f"holds {shorten(name)}, a tensor of a PEFT adapter and not of a model; name the folder that has "
                f"{ADAPTER_CONFIG}, without {CONFIG}"
            )


def _open_base(adapter: Path, base: str) -> Checkpoint:
    """Return the checkpoint that an adapter is added to."""
    if not user_path(base).exists():
        raise UserError(f"{adapter}: its base, {shorten(base)}, is not there; write its place in {ADAPTER_CONFIG}")
    if find_model(base).resolve() == adapter.resolve():
        raise UserError(f"{adapter}: names itself as its base in {ADAPTER_CONFIG}")
    checkpoint = open_checkpoint(base)
    return replace(checkpoint, adapters=(*checkpoint.adapters, adapter))


def _open_gguf(file: Path, said: StoredConfig) -> Checkpoint:
    """Return the checkpoint of a GGUF file."""
    architecture, stored = read_gguf(file)
    layout = gguf_layout(said.network.model_type, architecture)
    config = replace(said.network, num_nextn_predict_layers=int(any(".nextn." in name for name in stored)))
    return Checkpoint(file, said, config, stored, {}, layout, [])


def _mtp_layers(names: Collection[str]) -> int:
    """Return how many layers of multi-token prediction the files hold, 0 or 1.

    Raises:
        UserError: they hold more.
    """
    for name in names:
        if is_mtp(name) and _SECOND_LAYER.search(name):
            raise UserError(f"holds {shorten(name)}, a second layer of multi-token prediction; gossamer computes one")
    return int(any(map(is_mtp, names)))
