"""Loading a network from a Hugging Face directory.

The network is laid out without memory, checked against the files' headers, and only then allocated. Its tensors are
filled through short-lived memory maps, so that the files never count a second time: at the peak there are the model
and one window of a file in memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gossamer import device as devices
from gossamer.cost.network import count_network
from gossamer.errors import UserError, shorten
from gossamer.hub.adapter import load_adapter
from gossamer.hub.checkpoint import Checkpoint, open_checkpoint
from gossamer.hub.fp8 import SCALE_SUFFIX, dequantized
from gossamer.hub.gguf_read import GgufLayout, read_gguf_rows
from gossamer.hub.layout import Piece
from gossamer.hub.names import EMBEDDING, MTP_PREFIX, first_few, load_dtype, tensors_of
from gossamer.hub.shards import DTYPES, FP8, SAVE_AGAIN, StoredTensor, read_header, read_rows
from gossamer.model.causal_lm import CausalLM
from gossamer.model.experts import Router
from gossamer.model.linear import has_low_rank
from gossamer.model.low_rank import merge_low_rank
from gossamer.units import count

log = logging.getLogger("gossamer")


def load(path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> CausalLM:
    """Load the model of a run, of any Hugging Face directory of the family, or of a GGUF file, in evaluation mode.

    Weights are read from `model.safetensors` or its shards, in every layout that `gossamer/hub/layout.py` describes.
    FP8 by blocks is dequantized. The adapter of a tuned run stays beside its base's weights. The tensors, not
    config.json, decide whether there is a multi-token-prediction head, because transformers drops those tensors and
    keeps that key. The logger "gossamer" says whether one was found, as a warning if config.json promises more, and
    what was left out of a checkpoint that also sees pictures.

    Args:
        path: a run's folder, a Hugging Face directory or a GGUF file
        dtype: type of the weights in memory; None: each in the type in which it is stored, FP8 as bfloat16. `A_log`,
            `dt_bias`, `linear_attn.norm.weight` and a router's bias are at least in float32, whatever the rest is in.
        device: auto, cpu, cuda, cuda:1 … or a torch.device

    Raises:
        UserError: there is no model, it has another architecture, files are pickled or damaged, or tensors do not fit
            config.json; the message names them.
    """
    if dtype is not None and dtype not in DTYPES.values():
        raise UserError(f"dtype = {dtype!r}: must be torch.float32, bfloat16, float16 or float64")
    where = devices.resolve(device) if isinstance(device, str) else device
    return load_weights(open_checkpoint(path), dtype, where)


def load_weights(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, where: torch.device | None = None
) -> CausalLM:
    """Load the model of a checkpoint as `load` does; by default on the CPU."""
    where = torch.device("cpu") if where is None else where
    _require_size(checkpoint)
    with torch.device("meta"), _Uninitialized():
        model = CausalLM(checkpoint.config, random_weights=False)
        _add_router_biases(model, checkpoint)
    places = _match(model, checkpoint)
    dtypes = _dtypes(checkpoint.stored, places, dtype)
    if not all(devices.can_hold(where, one) for one in dtypes.values()):
        problem = f"float64, which {where} does not have; load it as torch.float32, or on the CPU"
        raise UserError(f"{checkpoint.folder}: {problem}")
    _allocate(model, dtypes, where)
    with nullcontext() if checkpoint.scales else _one_thread():
        _fill(model, checkpoint, places)
    if checkpoint.config.tie_word_embeddings and checkpoint.layout.head in checkpoint.stored:
        _check_tied(model, checkpoint.stored[checkpoint.layout.head].file, checkpoint.layout.head)
    for adapter in checkpoint.adapters:
        merged(model)
        load_adapter(model, adapter)
    _report(checkpoint)
    return model.eval()


def merged(model: CausalLM) -> CausalLM:
    """Return the network with an adapter added to its weights, if it has one; the log names the largest rounding."""
    if has_low_rank(model):
        error = merge_low_rank(model)
        log.info("the adapter is added to the weights; the largest rounding of a sum is %.2g", error)
    return model


def _report(checkpoint: Checkpoint) -> None:
    """Log what was loaded: with a multi-token-prediction head or without, and what was left out."""
    folder, said, vision = checkpoint.folder, checkpoint.said, checkpoint.vision
    tower = [f"the {len(vision)} tensors of a vision tower ({shorten(vision[0])} …)"] if vision else []
    if left_out := [*said.not_for_text, *tower]:
        log.info("%s: read for text alone, without %s", folder, ", ".join(left_out))
    if said.block is not None and not checkpoint.scales:
        log.warning("%s: config.json promises FP8 weights, but none is stored so; read as they are", folder)
    layers = checkpoint.config.num_nextn_predict_layers
    if said.mtp_layers > layers == 0:
        log.warning(
            "%s: config.json promises a multi-token-prediction head, but the checkpoint holds no %s*; loaded without",
            folder,
            MTP_PREFIX,
        )
    elif said.mtp_layers > layers:
        log.warning(
            "%s: config.json promises a multi-token-prediction head of %d layers, but the checkpoint holds one; "
            "loaded with that",
            folder,
            said.mtp_layers,
        )
    else:
        log.info("%s: %s a multi-token-prediction head", folder, "with" if layers else "without")


# Which tensor goes where.


def _require_size(checkpoint: Checkpoint) -> None:
    """Refuse a config.json whose network is far larger than the files, before it is laid out."""
    wanted = count_network(checkpoint.config).parameters
    found = sum(math.prod(tensor.shape) for tensor in checkpoint.stored.values())
    if wanted > 2 * found + 1_000_000:
        raise UserError(
            f"{checkpoint.folder}: config.json describes a network of {count(wanted)} parameters, and the files hold "
            f"{count(found)}; {SAVE_AGAIN}"
        )


def _add_router_biases(model: CausalLM, checkpoint: Checkpoint) -> None:
    """Give routers the biases that the files hold."""
    for name, module in model.named_modules():
        bias = checkpoint.layout.stored_name(f"{name}.e_score_correction_bias")
        if isinstance(module, Router) and bias in checkpoint.stored:
            module.e_score_correction_bias = torch.empty(len(module.weight))


def _match(model: CausalLM, checkpoint: Checkpoint) -> dict[str, tuple[str, Piece]]:
    """Return for each stored tensor its parameter and its part of it; the files must hold exactly the network."""
    stored, folder = checkpoint.stored, checkpoint.folder
    places: dict[str, tuple[str, Piece]] = {}
    missing: list[str] = []
    for parameter, tensor in tensors_of(model).items():
        for piece in _stored_form(parameter, tensor, checkpoint):
            name = checkpoint.layout.stored_name(piece.name)
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
    known = places.keys() | {name + SCALE_SUFFIX for name in checkpoint.scales}
    if model.config.tie_word_embeddings:
        known |= {checkpoint.layout.head}
    if unexpected := sorted(stored.keys() - known):
        raise UserError(
            f"{folder}: {len(unexpected)} {_tensors(unexpected)} not in the network that config.json describes: "
            f"{first_few(unexpected)}; one of the two belongs to another model"
        )
    return places


def _stored_form(parameter: str, tensor: Tensor, checkpoint: Checkpoint) -> list[Piece]:
    """Return a parameter's pieces in the form that the files hold, or are to hold if they hold none.

    Raises:
        UserError: they hold it in two.
    """
    found: list[tuple[str, list[Piece]]] = []
    for pieces in checkpoint.layout.forms(parameter, tensor.shape, checkpoint.config):
        names = [checkpoint.layout.stored_name(piece.name) for piece in pieces]
        found += [(name, pieces) for name in names if name in checkpoint.stored][:1]
    if len(found) > 1:
        (one, _), (other, _) = found
        raise UserError(f"{checkpoint.folder}: {one} and {other} are the same weights, stored twice; {SAVE_AGAIN}")
    return found[0][1] if found else checkpoint.layout.pieces(parameter, tensor.shape, checkpoint.config)


def _tensors(names: Sequence[str]) -> str:
    """Return the beginning of a sentence about these tensors."""
    return "tensor is" if len(names) == 1 else "tensors are"


def _dtypes(
    stored: dict[str, StoredTensor], places: dict[str, tuple[str, Piece]], dtype: torch.dtype | None
) -> dict[str, torch.dtype]:
    """Return the dtype of each parameter; experts that are stored in several types get one that holds them all."""
    dtypes: dict[str, torch.dtype] = {}
    for name, (parameter, _) in places.items():
        kept = torch.bfloat16 if stored[name].dtype == FP8 else stored[name].dtype
        wanted = load_dtype(parameter, dtype or kept)
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
def _fill(model: CausalLM, checkpoint: Checkpoint, places: dict[str, tuple[str, Piece]]) -> None:
    """Copy the stored tensors into the network, dequantized where they have scales."""
    parameters, stored, block = tensors_of(model), checkpoint.stored, checkpoint.said.block
    by_file: dict[Path, list[str]] = {}
    for name in places:
        by_file.setdefault(stored[name].file, []).append(name)
    for file, names in by_file.items():
        tensors = {name: stored[name] for name in names}
        read = read_gguf_rows if isinstance(checkpoint.layout, GgufLayout) else read_rows
        for name, start, rows in read(file, tensors):
            parameter, piece = places[name]
            if block is None or name not in checkpoint.scales:
                piece.write(parameters[parameter], start, rows)
                continue
            for first, part in dequantized(rows, start, checkpoint.scales[name], block):
                piece.write(parameters[parameter], first, part)


@torch.no_grad()
def _check_tied(model: CausalLM, file: Path, head: str) -> None:
    """Refuse a stored head that differs from the embedding that it is tied to."""
    embedding = model.model.embed_tokens.weight
    stored = read_header(file)[head]
    same = stored.shape == tuple(embedding.shape) and all(
        torch.equal(rows.to(embedding), embedding[start : start + len(rows)])
        for _, start, rows in read_rows(file, {head: stored})
    )
    if not same:
        raise UserError(
            f"{file}: {head} differs from {EMBEDDING}, though config.json ties them; "
            "set tie_word_embeddings to false there"
        )
