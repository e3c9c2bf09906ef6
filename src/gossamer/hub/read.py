"""Loading a network from a Hugging Face directory.

The network is laid out without memory, checked against the files' headers, and only then allocated. Its tensors are
filled through short-lived memory maps, so that the files never count a second time: at the peak there are the model
and one window of a file in memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gossamer import device as devices
from gossamer.cost.network import count_network
from gossamer.errors import UserError, shorten
from gossamer.hub.find import find_model, read_config
from gossamer.hub.layout import Layout, Piece, forms, is_mtp, is_vision, layout_of
from gossamer.hub.names import EMBEDDING, MTP_PREFIX, first_few, load_dtype, tensors_of
from gossamer.hub.shards import DTYPES, SAVE_AGAIN, StoredTensor, read_header, read_headers, read_rows
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.experts import Router
from gossamer.units import count

log = logging.getLogger("gossamer")

_MTP_KEY = "num_nextn_predict_layers"


def load(path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> CausalLM:
    """Load the model of a run, or of any Hugging Face directory of the family, in evaluation mode.

    Weights are read from `model.safetensors` or its shards, with the experts stacked or one by one, with or without
    `mtp.*`. The tensors, not config.json, decide whether there is a multi-token-prediction head, because transformers
    drops those tensors and keeps that key. One line of the logger "gossamer" says what was found; it is a warning if
    config.json promises more.

    Args:
        path: a run's folder or a Hugging Face directory
        dtype: type of the weights in memory; None: each in the type in which it is stored. `A_log`, `dt_bias`,
            `linear_attn.norm.weight` and a router's bias are at least in float32, whatever the others are in.
        device: auto, cpu, cuda, cuda:1 … or a torch.device

    Raises:
        UserError: there is no model, it has another architecture, files are pickled or damaged, or tensors do not fit
            config.json; the message names them.
    """
    if dtype is not None and dtype not in DTYPES.values():
        raise UserError(f"dtype = {dtype!r}: must be torch.float32, bfloat16, float16 or float64")
    where = devices.resolve(device) if isinstance(device, str) else device
    folder = find_model(path)
    values, config = read_config(folder)
    stored, vision = _without_vision(read_headers(folder))
    layout = read_layout(stored, config, folder)
    config = replace(config, num_nextn_predict_layers=int(any(map(is_mtp, stored))))
    _require_size(config, stored, folder)
    with torch.device("meta"), _Uninitialized():
        model = CausalLM(config, random_weights=False)
        _add_router_biases(model, stored, layout)
    places = _match(model, stored, layout, folder)
    dtypes = _dtypes(stored, places, dtype)
    if not all(devices.can_hold(where, one) for one in dtypes.values()):
        raise UserError(f"{folder}: float64, which {where} does not have; load it as torch.float32, or on the CPU")
    _allocate(model, dtypes, where)
    with _one_thread():
        _fill(model, stored, places)
    if config.tie_word_embeddings and layout.head in stored:
        _check_tied(model, stored[layout.head].file, layout)
    _report(folder, model, vision, promised=bool(values.get(_MTP_KEY)))
    return model.eval()


def _report(folder: Path, model: CausalLM, vision: Sequence[str], promised: bool) -> None:
    """Log what was loaded: with a multi-token-prediction head or without, and what was skipped."""
    if vision:
        log.info("%s: skipped the %d tensors of its vision tower (%s, …)", folder, len(vision), shorten(vision[0]))
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


def _without_vision(stored: dict[str, StoredTensor]) -> tuple[dict[str, StoredTensor], list[str]]:
    """Return the tensors of the language model, and the names of those of the vision tower."""
    vision = [name for name in stored if is_vision(name)]
    return {name: tensor for name, tensor in stored.items() if not is_vision(name)}, vision


def read_layout(stored: Collection[str], config: ModelConfig, folder: Path) -> Layout:
    """Return the layout of a checkpoint.

    Raises:
        UserError: it is a mixture of two; the line names the folder.
    """
    try:
        return layout_of(stored, config.model_type)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def _require_size(config: ModelConfig, stored: dict[str, StoredTensor], folder: Path) -> None:
    """Refuse a config.json whose network is far larger than the files, before it is laid out."""
    wanted, found = count_network(config).parameters, sum(math.prod(tensor.shape) for tensor in stored.values())
    if wanted > 2 * found + 1_000_000:
        raise UserError(
            f"{folder}: config.json describes a network of {count(wanted)} parameters, and the files hold "
            f"{count(found)}; {SAVE_AGAIN}"
        )


# Which tensor goes where.


def _add_router_biases(model: CausalLM, stored: dict[str, StoredTensor], layout: Layout) -> None:
    """Give routers the biases that the files hold."""
    for name, module in model.named_modules():
        if isinstance(module, Router) and layout.stored_name(f"{name}.e_score_correction_bias") in stored:
            module.e_score_correction_bias = torch.empty(len(module.weight))


def _match(
    model: CausalLM, stored: dict[str, StoredTensor], layout: Layout, folder: Path
) -> dict[str, tuple[str, Piece]]:
    """Return for each stored tensor its parameter and its part of it; the files must hold exactly the network."""
    places: dict[str, tuple[str, Piece]] = {}
    missing: list[str] = []
    for parameter, tensor in tensors_of(model).items():
        for piece in _stored_form(parameter, tensor, model.config, stored, layout, folder):
            name = layout.stored_name(piece.name)
            if name not in stored:
                missing.append(name)
                continue
            places[name] = parameter, piece
            if (wanted := piece.shape(tensor)) != stored[name].shape:
                raise UserError(
                    f"{stored[name].file}: {name} has shape {list(stored[name].shape)}, "
                    f"but config.json makes it {list(wanted)}; one of the two belongs to another model"
                )
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} {_tensors(missing)} missing that config.json asks for: {first_few(missing)}; "
            f"{SAVE_AGAIN}"
        )
    tied = {layout.head} if model.config.tie_word_embeddings else set()
    if unexpected := sorted(stored.keys() - places.keys() - tied):
        raise UserError(
            f"{folder}: {len(unexpected)} {_tensors(unexpected)} not in the network that config.json describes: "
            f"{first_few(unexpected)}; one of the two belongs to another model"
        )
    return places


def _stored_form(
    parameter: str, tensor: Tensor, config: ModelConfig, stored: dict[str, StoredTensor], layout: Layout, folder: Path
) -> list[Piece]:
    """Return a parameter's pieces in the form that the files hold, or are to hold if they hold none.

    Raises:
        UserError: they hold it in two.
    """
    found = [
        (pieces, present)
        for pieces in forms(parameter, tensor.shape, config)
        if (present := [name for piece in pieces if (name := layout.stored_name(piece.name)) in stored])
    ]
    if len(found) > 1:
        (_, one), (_, other) = found
        raise UserError(f"{folder}: {one[0]} and {other[0]} are the same weights, stored twice; {SAVE_AGAIN}")
    return found[0][0] if found else layout.pieces(parameter, tensor.shape, config)


def _tensors(names: Sequence[str]) -> str:
    """Return the beginning of a sentence about these tensors."""
    return "tensor is" if len(names) == 1 else "tensors are"


def _dtypes(
    stored: dict[str, StoredTensor], places: dict[str, tuple[str, Piece]], dtype: torch.dtype | None
) -> dict[str, torch.dtype]:
    """Return the dtype of each parameter; experts that are stored in several types get one that holds them all."""
    dtypes: dict[str, torch.dtype] = {}
    for name, (parameter, _) in places.items():
        wanted = load_dtype(parameter, dtype or stored[name].dtype)
        dtypes[parameter] = torch.promote_types(dtypes.get(parameter, wanted), wanted)
    return dtypes


# The weights themselves.


class _Uninitialized(TorchFunctionMode):
    """Leaves out random weights, which on tensors without memory make PyTorch import sympy: seconds, and 75 MB."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Copy in one thread: memory is the bottleneck, and on a busy machine each copy waits for the slowest thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _allocate(model: CausalLM, dtypes: dict[str, torch.dtype], device: torch.device) -> None:
    """Give a network that was laid out without memory the memory for its tensors."""
    for name, tensor in tensors_of(model).items():
        owner, _, leaf = name.rpartition(".")
        memory = torch.empty(tensor.shape, dtype=dtypes[name], device=device)
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(memory) if is_parameter else memory)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


@torch.no_grad()
def _fill(model: CausalLM, stored: dict[str, StoredTensor], places: dict[str, tuple[str, Piece]]) -> None:
    """Copy the stored tensors into the network."""
    parameters = tensors_of(model)
    by_file: dict[Path, list[str]] = {}
    for name in places:
        by_file.setdefault(stored[name].file, []).append(name)
    for file, names in by_file.items():
        for name, start, rows in read_rows(file, {name: stored[name] for name in names}):
            parameter, piece = places[name]
            piece.write(parameters[parameter], start, rows)


@torch.no_grad()
def _check_tied(model: CausalLM, file: Path, layout: Layout) -> None:
    """Refuse a stored head that differs from the embedding that it is tied to."""
    embedding = model.model.embed_tokens.weight
    stored = read_header(file)[layout.head]
    same = stored.shape == tuple(embedding.shape) and all(
        torch.equal(rows.to(embedding), embedding[start : start + len(rows)])
        for _, start, rows in read_rows(file, {layout.head: stored})
    )
    if not same:
        raise UserError(
            f"{file}: {layout.head} differs from {EMBEDDING}, though config.json ties them; "
            "set tie_word_embeddings to false there"
        )
