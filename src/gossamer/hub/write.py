"""Writing a network as a Hugging Face directory: `save`, and `export` for one that is on disk already.

The files are written under a temporary name beside the directory and renamed when they are complete. A folder is a
model by its config.json: where more than one file changes, that one is removed first and comes back last, so that a
crash between two renames leaves no mixture of two checkpoints that could be loaded.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gossamer.errors import UserError
from gossamer.files import building, disk_errors, publish, sync, sync_tree
from gossamer.hub.adapter import save_adapter
from gossamer.hub.checkpoint import Checkpoint, open_checkpoint
from gossamer.hub.companions import copy_companions, has_tokenizer, json_text, token_values
from gossamer.hub.find import CONFIG, base_of, find_model
from gossamer.hub.layout import Layout, Piece, named_layout, released_layout, tensors_in, written_layout
from gossamer.hub.names import EMBEDDING, INDEX, SHARD_PATTERN, is_weight_file, load_dtype, tensors_of
from gossamer.hub.read import load_weights, merged
from gossamer.hub.shards import FP8, utf8_path
from gossamer.model.causal_lm import CausalLM
from gossamer.model.linear import has_low_rank
from gossamer.reading import user_path

log = logging.getLogger("gossamer")

_SHARD_BYTES = 5 * 10**9  # as Hugging Face's Hub recommends
SAVE_ELSEWHERE = "name a folder elsewhere"


class SavableTokenizer(Protocol):
    """A tokenizer that can be saved beside a model."""

    eot_id: int

    def save(self, folder: str | Path) -> None:
        """Write its files into a folder."""


def save(
    model: CausalLM, directory: str | Path, tokenizer: SavableTokenizer | None = None, layout: str | None = None
) -> None:
    """Write config.json and safetensors in the released layout, which transformers, vLLM and SGLang read.

    `mtp.*` is included, and tied embeddings are written once; above 5 GB the weights are split into shards with an
    index. Of a model that the directory held before nothing is left; other files in it stay. All new files are complete
    before the first of them takes its place. A crash after that leaves either a whole model or no config.json, never a
    mixture that could be loaded.

    Args:
        model: on any device, in any floating-point type; what is written is bit for bit what it holds
        directory: made if it is missing
        tokenizer: written beside the model, and its `eot_id` into config.json as the end of text
        layout: a name of `NAMED_LAYOUTS`; None: that in which models of its type are released

    Raises:
        UserError: the directory cannot be written, or the disk is full; the model that was there is unchanged. Or the
            model type of the layout does not have such networks.
    """
    if layout is None:
        written, config = released_layout(model.config.model_type), model.config
    else:
        written, config = named_layout(layout, model.config)
    values = config.to_dict() | ({} if tokenizer is None else {"eos_token_id": tokenizer.eot_id})
    _write_model(model, user_path(directory), written, values, None if tokenizer is None else tokenizer.save)


def save_like(model: CausalLM, directory: Path, base: Checkpoint, companions: Callable[[Path], None]) -> None:
    """Write a network as the checkpoint is written whose weights it began with: in its layout and its types.

    Args:
        model: the network; its weights are brought into the types of the base
        directory: made if it is missing; of a model that it held before nothing is left
        base: the checkpoint
        companions: writes the tokenizer and further files into a folder

    Raises:
        UserError: the directory cannot be written, or the disk is full; the model that was there is unchanged.
    """
    dtype = _main_dtype(base)
    for name, tensor in tensors_of(model).items():
        tensor.data = tensor.data.to(load_dtype(name, dtype))
    values = model.config.to_dict() | token_values(find_model(base.folder))
    _write_model(model, directory, written_layout(base.layout), values, companions)


def _main_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the type of most of the weights of a checkpoint; that of FP8 once it is dequantized."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in checkpoint.stored.values():
        sizes[torch.bfloat16 if tensor.dtype == FP8 else tensor.dtype] += math.prod(tensor.shape)
    return max(sizes, key=sizes.__getitem__)


def export(run: str | Path, directory: str | Path, layout: str | None = None) -> None:
    """Write the model of a run, or of a Hugging Face directory, as a Hugging Face directory.

    The weights are checked as `load` checks them; FP8 is dequantized. The adapter of a tuned run is added to its base's
    weights in float32, and each sum is rounded once. Tokenizer and generation settings are copied.

    Args:
        run: a run's folder, a Hugging Face directory or a GGUF file
        directory: new or empty
        layout: a name of `NAMED_LAYOUTS`; None: that in which the model is stored

    Raises:
        UserError: there is no whole model in `run`, or `directory` holds something else or cannot be written. Or the
            model type of the layout does not have such networks.
    """
    target = user_path(directory)
    checkpoint = open_checkpoint(run)
    source = find_model(run)
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{directory}: is not empty; name a new folder")
    if layout is None:
        written, config = written_layout(checkpoint.layout), checkpoint.config
    else:
        written, config = named_layout(layout, checkpoint.config)
    values = config.to_dict() | token_values(source)
    _write_model(merged(load_weights(checkpoint)), target, written, values, partial(copy_companions, source))
    if not has_tokenizer(source):
        log.warning("%s: holds no tokenizer, so %s has none; other programs need one", source, directory)


def export_adapter(run: str | Path, directory: str | Path, apart: bool = False) -> None:
    """Write the adapter of a tuned run, or one of PEFT's that has a config.json beside it, as an adapter of PEFT's.

    Args:
        run: a run's folder, or an adapter's
        directory: new or empty
        apart: a module for each matrix of each expert, as vLLM reads them; else experts are stacked

    Raises:
        UserError: there is no adapter or no base of it, or `directory` holds something else or cannot be written.
    """
    target = user_path(directory)
    if (base := base_of(source := find_model(run))) is None:
        raise UserError(f"{run}: holds a whole model and no adapter; --to hf writes it")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{directory}: is not empty; name a new folder")
    if target.exists() and not target.is_dir():
        raise UserError(f"{directory}: is a file; name a folder")
    model = load_weights(open_checkpoint(source))
    with disk_errors(target, SAVE_ELSEWHERE), building(target) as temporary:
        copy_companions(source, temporary)
        save_adapter(model, temporary, base, apart)
        publish(temporary, target)


def _write_model(
    model: CausalLM,
    directory: Path,
    layout: Layout,
    values: dict[str, Any],
    companions: Callable[[Path], None] | None,
) -> None:
    """Write a model as `save` does.

    Args:
        model: the network
        directory: its place
        layout: how its tensors are laid out
        values: the content of config.json, without the type of the weights
        companions: writes further files into a folder
    """
    if has_low_rank(model):
        raise UserError(
            "a model with an adapter beside its weights is not saved as one; merge it (merge_low_rank) first"
        )
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file; name a folder")
    directory = directory.resolve()  # "." has no name, and a link may lead to another disk
    with disk_errors(directory, SAVE_ELSEWHERE), building(directory) as temporary:
        if companions is not None:
            companions(temporary)
        dtype = str(model.get_parameter(EMBEDDING).dtype).removeprefix("torch.")
        (temporary / CONFIG).write_text(json_text(values | {"dtype": dtype}), encoding="utf-8")
        _write_weights(model, temporary, layout)
        _publish(temporary, directory)


# Writing.


def _write_weights(model: CausalLM, folder: Path, layout: Layout) -> None:
    tensors = tensors_in(layout, model, model.config)
    sizes = {name: _bytes(parameter, piece) for name, (parameter, piece) in tensors.items()}
    split = split_state_dict_into_shards_factory(
        sizes, get_storage_size=int, filename_pattern=SHARD_PATTERN, max_shard_size=_SHARD_BYTES
    )
    for file, names in split.filename_to_tensors.items():
        # On the host, since safetensors asks tensors for addresses that those of a plug-in may not have. They are views
        # of the network, unless rows are put in another order or a caller has set a parameter to a view.
        shard = {}
        for name in names:
            parameter, piece = tensors[name]
            shard[name] = piece.read(parameter).cpu().contiguous()
        try:
            with utf8_path(folder / file) as path:
                save_file(shard, path, metadata={"format": "pt"})
        except SafetensorError as error:  # the operating system's error as text
            raise OSError(str(error)) from error
        shutil.copymode(folder / CONFIG, folder / file)  # safetensors lets nobody else read it, whatever the umask
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json_text(index), encoding="utf-8")


def _bytes(parameter: Tensor, piece: Piece) -> int:
    return math.prod(piece.shape(parameter)) * parameter.itemsize


# From the temporary folder to its place.


def _publish(temporary: Path, directory: Path) -> None:
    """Move finished files to their place, where other files may lie and stay."""
    if not directory.exists():
        publish(temporary, directory)
        return
    sync_tree(temporary)
    files = [path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file()]
    new = sorted(name for name in files if not _is_same(temporary / name, directory / name))
    stale = [path for path in directory.iterdir() if is_weight_file(path) and not (temporary / path.name).exists()]
    if len(new) == 1 and not stale:  # the next weights of a training run: one rename, and readers never wait
        os.replace(temporary / new[0], directory / new[0])
    else:
        (directory / CONFIG).unlink(missing_ok=True)
        for path in stale:
            path.unlink()
        for name in [*(name for name in new if name != Path(CONFIG)), Path(CONFIG)]:
            (directory / name).parent.mkdir(exist_ok=True)
            os.replace(temporary / name, directory / name)
    sync(directory)


def _is_same(path: Path, other: Path) -> bool:
    """Whether two files are equal; files of weights are taken to differ."""
    return not is_weight_file(path) and other.is_file() and path.read_bytes() == other.read_bytes()
