"""A network becomes a Hugging Face directory: `save`, and `export` for one that is on disk already.

The files are written under a temporary name beside the directory and renamed when they are complete. config.json is
what makes a folder a model: where more than one file changes it goes first and comes back last, so that a crash
between two renames leaves no mixture of two checkpoints that could be loaded.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gossamer.errors import UserError
from gossamer.hub.files import spelt_in_utf8
from gossamer.hub.find import CONFIG, find_model
from gossamer.hub.names import EMBEDDING, INDEX, SHARD_PATTERN, is_weight_file, released_tensors
from gossamer.hub.read import load
from gossamer.model.causal_lm import CausalLM
from gossamer.reading import read_object, user_path

_SHARD_BYTES = 5 * 10**9  # as Hugging Face's Hub recommends
_ABANDONED = 3600  # seconds without a write after which a temporary folder is taken for a crashed process' one
# What belongs to a model beside its weights and config.json, under Hugging Face's names.
_COMPANIONS = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt "
    "chat_template.jinja additional_chat_templates generation_config.json"
).split()
# Keys of config.json that say nothing about the network but what its tokens mean to whoever generates text.
_TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


class SavedBeside(Protocol):
    """A tokenizer, as far as this file needs one."""

    eot_id: int

    def save(self, folder: str | Path) -> None:
        """Write its files into a folder."""


def save(model: CausalLM, directory: str | Path, tokenizer: SavedBeside | None = None) -> None:
    """Write config.json and safetensors in the released layout, which transformers, vLLM and SGLang read.

    Experts become one tensor each, `mtp.*` is included, tied embeddings are written once; above 5 GB the weights are
    split into shards with an index. What the directory held before is replaced as a whole or not at all; other files
    in it stay.

    Args:
        model: on any device, in any floating-point type; what is written is bit for bit what it holds
        directory: made if it is missing
        tokenizer: written beside the model, and its `eot_id` into config.json as the end of text

    Raises:
        UserError: the directory cannot be written, or the disk is full; nothing is changed then.
    """
    extra = {} if tokenizer is None else {"eos_token_id": tokenizer.eot_id}
    _write_model(model, user_path(directory), extra, None if tokenizer is None else tokenizer.save)


def export(run: str | Path, directory: str | Path) -> None:
    """Write a run's model, or another Hugging Face directory's, as a Hugging Face directory in the released layout.

    The weights are checked on the way, as `load` does; tokenizer and generation settings are copied.

    Args:
        run: a run's folder or a Hugging Face directory
        directory: new or empty

    Raises:
        UserError: there is no whole model in `run`, or `directory` holds something else or cannot be written.
    """
    source, target = find_model(run), user_path(directory)
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{directory}: is not empty; name a new folder")
    values = read_object(source / CONFIG)
    inner = values.get("text_config")  # of a checkpoint that also sees pictures
    values = (inner if isinstance(inner, dict) else {}) | {key: one for key, one in values.items() if one is not None}
    tokens = {key: values[key] for key in _TOKEN_KEYS if values.get(key) is not None}

    def copy_companions(folder: Path) -> None:
        for name in _COMPANIONS:
            if (source / name).is_dir():
                shutil.copytree(source / name, folder / name, copy_function=shutil.copyfile)
            elif (source / name).is_file():
                shutil.copyfile(source / name, folder / name)

    _write_model(load(source), target, tokens, copy_companions)


def _write_model(
    model: CausalLM, directory: Path, extra: dict[str, Any], companions: Callable[[Path], None] | None
) -> None:
    """`save`, with further keys for config.json and a function that writes further files into a folder."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file; name a folder")
    directory = directory.resolve()  # "." has no name, and a link may lead to another disk
    with disk_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        temporary = directory.with_name(f".{directory.name}.tmp-{uuid.uuid4().hex}")
        temporary.mkdir()
        try:
            if companions is not None:
                companions(temporary)
            _write_config(model, temporary, extra)
            _write_weights(model, temporary)
            for path in temporary.rglob("*"):
                sync(path)
            _publish(temporary, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turn a full disk, and whatever else keeps the directory from being written, into a UserError that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports the operating system's errors as text of its own
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            raise UserError(f"{directory}: the disk is full; free some space or name a folder elsewhere") from error
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{directory}: cannot be written ({reason}); name a folder elsewhere") from error


# Writing.


def _write_weights(model: CausalLM, folder: Path) -> None:
    tensors = released_tensors(model)
    split = split_state_dict_into_shards_factory(
        tensors, get_storage_size=_bytes, filename_pattern=SHARD_PATTERN, max_shard_size=_SHARD_BYTES
    )
    for file, names in split.filename_to_tensors.items():
        # On the host, since safetensors asks tensors for addresses that a plug-in's may not have. Contiguous already,
        # unless somebody set a parameter to a view of his own; then it is copied.
        shard = {name: tensors[name].cpu().contiguous() for name in names}
        with spelt_in_utf8(folder / file) as path:
            save_file(shard, path, metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, folder / file)  # safetensors lets nobody else read it, whatever the umask
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(folder / INDEX, index)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _write_config(model: CausalLM, folder: Path, extra: dict[str, Any]) -> None:
    dtype = str(model.get_parameter(EMBEDDING).dtype).removeprefix("torch.")
    _write_json(folder / CONFIG, model.config.to_dict() | {"dtype": dtype} | extra)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# From the temporary folder to its place.


def _publish(temporary: Path, directory: Path) -> None:
    if not directory.exists():
        os.rename(temporary, directory)
        sync(directory.parent)
        return
    files = [path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file()]
    new = sorted(name for name in files if not _same(temporary / name, directory / name))
    stale = [path for path in directory.iterdir() if is_weight_file(path) and not (temporary / path.name).exists()]
    if len(new) == 1 and not stale:  # a training run's next weights: one rename, and readers never wait
        os.replace(temporary / new[0], directory / new[0])
    else:
        (directory / CONFIG).unlink(missing_ok=True)
        for path in stale:
            path.unlink()
        for name in [*(name for name in new if name != Path(CONFIG)), Path(CONFIG)]:
            (directory / name).parent.mkdir(exist_ok=True)
            os.replace(temporary / name, directory / name)
    sync(directory)


def _same(path: Path, other: Path) -> bool:
    """Whether two small files are equal; weights are taken to differ."""
    return not is_weight_file(path) and other.is_file() and path.read_bytes() == other.read_bytes()


def sync(path: Path) -> None:
    """Have a file's bytes on the disk before its name is; or a folder's names, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(directory: Path) -> None:
    """Remove what processes that were killed while saving here have left."""
    for path in directory.parent.glob(f".{glob.escape(directory.name)}.tmp-*"):
        with suppress(OSError):  # it may be vanishing under another process' broom
            newest = max(entry.stat().st_mtime for entry in (path, *path.iterdir()))
            if time.time() - newest > _ABANDONED:
                shutil.rmtree(path)
