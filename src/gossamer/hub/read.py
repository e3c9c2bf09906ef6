"""A Hugging Face directory becomes a network: `load`.

Memory: the network is laid out without memory, checked against the files' headers, and only then allocated; its
tensors are filled through short-lived memory maps, so that the files never count a second time. At the peak that is
the model and one window of a file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gossamer import device as devices
from gossamer.cost.network import count_network
from gossamer.errors import UserError
from gossamer.hub.files import DTYPES, REMEDY, Stored, read_header, read_headers, read_rows
from gossamer.hub.find import find_model, read_config
from gossamer.hub.names import (
    EMBEDDING,
    HEAD,
    MTP_PREFIX,
    Index,
    held_dtype,
    released,
    some,
    tensors_of,
)
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.experts import Router
from gossamer.units import count

log = logging.getLogger("gossamer")

_MTP_KEY = "num_nextn_predict_layers"


def load(path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> CausalLM:
    """Load a run's model, or any Hugging Face directory of the family.

    The model is in evaluation mode, as one that transformers has loaded.

    Weights are read from `model.safetensors` or its shards, with the experts stacked or one by one, with or without
    `mtp.*`. Whether there is a multi-token-prediction head is decided by the tensors, not by config.json, because
    transformers drops those tensors and keeps that key: one line of the logger "gossamer" says what was found, a
    warning if config.json promised more.

    Args:
        path: a run's folder or a Hugging Face directory
        dtype: type to hold the weights in; None: each in the type it is stored in. `A_log`, `dt_bias`,
            `linear_attn.norm.weight` and a router's bias are held in float32 at least, whatever the others are in.
        device: auto, cpu, cuda, cuda:1 … or a torch.device

    Raises:
        UserError: no model there, another architecture, pickled or damaged files, or tensors that do not fit
            config.json; the message names them.
    """
    if dtype is not None and dtype not in DTYPES.values():
        raise UserError(f"dtype = {dtype!r}: must be torch.float32, bfloat16, float16 or float64")
    where = devices.resolve(device) if isinstance(device, str) else device
    folder = find_model(path)
    values, config = read_config(folder)
    config = _by_interval(config)
    stored = read_headers(folder)
    mtp = any(name.startswith(MTP_PREFIX) for name in stored)
    config = replace(config, num_nextn_predict_layers=int(mtp))
    _require_size(config, stored, folder)
    with torch.device("meta"), _Uninitialised():
        model = CausalLM(config, random_weights=False)
        _add_router_biases(model, stored)
    places = _match(model, stored, folder)
    held = _held_dtypes(stored, places, dtype)
    if not all(devices.can_hold(where, one) for one in held.values()):
        raise UserError(f"{folder}: float64, which {where} does not have; load it as torch.float32, or on the CPU")
    _allocate(model, held, where)
    with _one_thread():
        _fill(model, stored, places)
    if config.tie_word_embeddings and HEAD in stored:
        _check_tied(model, stored[HEAD].file)
    _announce(folder, model, promised=bool(values.get(_MTP_KEY)))
    return model.eval()


def _announce(folder: Path, model: CausalLM, promised: bool) -> None:
    if model.mtp is None and promised:
        log.warning(
            "%s: config.json promises a multi-token-prediction head, but the checkpoint holds no %s*; loaded without",
            folder,
            MTP_PREFIX,
        )
        return
    head = "with" if model.mtp is not None else "without"
    log.info("%s: %s a multi-token-prediction head", folder, head)


# What the files say.


def _by_interval(config: ModelConfig) -> ModelConfig:
    """Files spell the layers out; where the interval says the same, the configuration is the one that was saved."""
    by_interval = replace(config, layer_types=None)
    return by_interval if by_interval.mixers == config.mixers else config


def _require_size(config: ModelConfig, stored: dict[str, Stored], folder: Path) -> None:
    """Refuse a config.json of a network that is far larger than what the files hold, before it is laid out."""
    wanted, held = count_network(config).parameters, sum(math.prod(tensor.shape) for tensor in stored.values())
    if wanted > 2 * held + 1_000_000:
        raise UserError(
            f"{folder}: config.json describes a network of {count(wanted)} parameters, and the files hold "
            f"{count(held)}; "
            f"{REMEDY}"
        )


# Which tensor goes where.


def _add_router_biases(model: CausalLM, stored: dict[str, Stored]) -> None:
    for name, module in model.named_modules():
        if isinstance(module, Router) and f"{name}.e_score_correction_bias" in stored:
            module.e_score_correction_bias = torch.empty(len(module.weight))


def _match(model: CausalLM, stored: dict[str, Stored], folder: Path) -> dict[str, tuple[str, Index]]:
    """For each stored tensor the parameter it belongs to and its place there; exactly those the network has."""
    places: dict[str, tuple[str, Index]] = {}
    missing: list[str] = []
    for parameter, tensor in tensors_of(model).items():
        pieces = dict(released(parameter, tensor.shape))
        present = [name for name in pieces if name in stored]
        if parameter in stored and pieces.keys() != {parameter}:
            if present:
                raise UserError(f"{folder}: {parameter} and {present[0]} are the same weights, stored twice; {REMEDY}")
            pieces = {parameter: ()}
        for name, index in pieces.items():
            if name not in stored:
                missing.append(name)
                continue
            places[name] = parameter, index
            if (wanted := tuple(tensor[index].shape)) != stored[name].shape:
                raise UserError(
                    f"{stored[name].file}: {name} has shape {list(stored[name].shape)}, "
                    f"but config.json makes it {list(wanted)}; one of the two belongs to another model"
                )
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} {_tensors(missing)} missing that config.json asks for: {some(missing)}; {REMEDY}"
        )
    tied = {HEAD} if model.config.tie_word_embeddings else set()
    if unexpected := sorted(stored.keys() - places.keys() - tied):
        raise UserError(
            f"{folder}: {len(unexpected)} {_tensors(unexpected)} not in the network that config.json describes: "
            f"{some(unexpected)}; one of the two belongs to another model"
        )
    return places


def _tensors(names: Sequence[str]) -> str:
    return "tensor is" if len(names) == 1 else "tensors are"


def _held_dtypes(
    stored: dict[str, Stored], places: dict[str, tuple[str, Index]], dtype: torch.dtype | None
) -> dict[str, torch.dtype]:
    """The type of each parameter; experts stored in several types get one that holds them all."""
    held: dict[str, torch.dtype] = {}
    for name, (parameter, _) in places.items():
        wanted = held_dtype(parameter, dtype or stored[name].dtype)
        held[parameter] = torch.promote_types(held.get(parameter, wanted), wanted)
    return held


# The weights themselves.


class _Uninitialised(TorchFunctionMode):
    """Draws no random weights: for those without memory PyTorch would first import sympy, seconds and 75 MB."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Copy in one thread: memory is the limit, and on a busy machine every copy waits for the slowest of many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _allocate(model: CausalLM, held: dict[str, torch.dtype], device: torch.device) -> None:
    for name, tensor in tensors_of(model).items():
        owner, _, leaf = name.rpartition(".")
        memory = torch.empty(tensor.shape, dtype=held[name], device=device)
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(memory) if is_parameter else memory)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


@torch.no_grad()
def _fill(model: CausalLM, stored: dict[str, Stored], places: dict[str, tuple[str, Index]]) -> None:
    parameters = tensors_of(model)
    by_file: dict[Path, list[str]] = {}
    for name in places:
        by_file.setdefault(stored[name].file, []).append(name)
    for file, names in by_file.items():
        for name, start, rows in read_rows(file, {name: stored[name] for name in names}):
            parameter, index = places[name]
            parameters[parameter][index][start : start + len(rows)].copy_(rows)


@torch.no_grad()
def _check_tied(model: CausalLM, file: Path) -> None:
    embedding = model.model.embed_tokens.weight
    stored = read_header(file)[HEAD]
    same = stored.shape == tuple(embedding.shape) and all(
        torch.equal(rows.to(embedding), embedding[start : start + len(rows)])
        for _, start, rows in read_rows(file, {HEAD: stored})
    )
    if not same:
        raise UserError(
            f"{file}: {HEAD} differs from {EMBEDDING}, though config.json ties them; "
            "set tie_word_embeddings to false there"
        )
