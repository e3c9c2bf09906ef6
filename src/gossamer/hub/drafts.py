"""A multi-token-prediction head that was trained beside an adapter: `drafts.safetensors` in the adapter's folder."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from gossamer.errors import UserError
from gossamer.hub.names import first_few
from gossamer.hub.shards import SAVE_AGAIN, StoredTensor, read_header, read_tensors
from gossamer.model.causal_lm import CausalLM

__all__ = ["DRAFTS", "head_tensors", "read_drafts", "set_drafts"]

DRAFTS = "drafts.safetensors"


def head_tensors(model: CausalLM) -> dict[str, Tensor]:
    """Return the weights of the head that was trained, by the network's own names; none if it was not."""
    if model.mtp is None or not any(parameter.requires_grad for parameter in model.mtp.parameters()):
        return {}
    named = model.mtp.state_dict(prefix="mtp.")
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in named.items()}


def read_drafts(model: CausalLM, folder: Path) -> dict[str, Tensor]:
    """Return the weights of a head that lies in an adapter's folder; none if there is no such file.

    Raises:
        UserError: the file is damaged, or is not of the network's head; the message names it.
    """
    file = folder / DRAFTS
    if not file.is_file():
        return {}
    if model.mtp is None:
        raise UserError(f"{file}: is a multi-token-prediction head, and the base has none; name the base it is for")
    header: dict[str, StoredTensor] = read_header(file)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.mtp.state_dict(prefix="mtp.").items()}
    found = {name: tensor.shape for name, tensor in header.items()}
    if wanted != found:
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise UserError(f"{file}: is another network's head, by {first_few(differing)}; {SAVE_AGAIN}")
    return read_tensors(header)


def set_drafts(model: CausalLM, tensors: dict[str, Tensor]) -> None:
    """Set the weights of a network's head in place of its own, which another network may share."""
    for name, tensor in tensors.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        here = tensor.to(getattr(owner, leaf).device)
        is_parameter = isinstance(getattr(owner, leaf), nn.Parameter)
        setattr(owner, leaf, nn.Parameter(here, requires_grad=False) if is_parameter else here)
