"""The layouts in which checkpoints of the family hold the network's tensors, and which of them a checkpoint has.

The network has one layout of its own: names under `model.` and `mtp.`, the projections of linear attention interleaved
by key head, the experts of a layer stacked. Checkpoints differ from it, and from one another, in four ways:

- the trunk lies under `model.`, or under `model.language_model.` and others beside a vision tower; the
  multi-token-prediction head at the top, or under the trunk's wrapper
- the projections of linear attention are interleaved (`in_proj_qkvz`, rows [q k v z] for each key head in turn, and
  `in_proj_ba`; Qwen3-Next) or flat (`in_proj_qkv`, rows q | k | v of all heads, `in_proj_z`, `in_proj_b` and
  `in_proj_a`; Qwen3.5 and later). One is a permutation of the other's rows.
- the experts of a layer are stacked (`experts.gate_up_proj` [E, 2I, hidden], `experts.down_proj` [E, hidden, I]) or
  apart, a tensor for each (`experts.{e}.gate_proj.weight`, `up_proj`, `down_proj`)
- those of the multi-token-prediction head may be laid out otherwise than those of the trunk

The names in the files decide, not `model_type`: released, merged and converted checkpoints of one model differ.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from gossamer.errors import UserError, shorten
from gossamer.hub.names import LM_HEAD, MTP_PREFIX, TRUNK_PREFIX, tensors_of
from gossamer.model.config import ModelConfig
from gossamer.typed import shown

# Where one expert's matrix lies in the stacked parameter, or () for the whole of a parameter.
Index = tuple[int | slice, ...]

_TRUNK_PREFIXES = ("model.", "model.language_model.", "language_model.model.", "language_model.", "")
_WRAPPERS = ("", "model.", "language_model.", "model.language_model.", "language_model.model.")
_MTP_PREFIXES = tuple(wrapper + MTP_PREFIX for wrapper in _WRAPPERS)
_VISION_PREFIXES = ("model.visual.", "visual.", "vision_tower.")
GATE_UP, _DOWN = ".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"
_FIRST_EXPERT = ".mlp.experts.0."
_QKVZ, _BA = ".linear_attn.in_proj_qkvz.weight", ".linear_attn.in_proj_ba.weight"


@dataclass(frozen=True)
class Layout:
    """The layout of a checkpoint.

    Attributes:
        trunk: prefix of the trunk's tensors
        mtp: prefix of the multi-token-prediction head's tensors
        head: name of the output head
        flat_projections: the projections of linear attention are q | k | v, z, b and a, not interleaved by key head
        stacked_experts: the trunk's experts are stacked, not a tensor for each
        stacked_mtp_experts: the same of the multi-token-prediction head
    """

    trunk: str = TRUNK_PREFIX
    mtp: str = MTP_PREFIX
    head: str = LM_HEAD
    flat_projections: bool = False
    stacked_experts: bool = False
    stacked_mtp_experts: bool = False

    def stored_name(self, name: str) -> str:
        """Return the name in the checkpoint of what the network calls `name`, or one tensor of that."""
        if name == LM_HEAD:
            return self.head
        if name.startswith(MTP_PREFIX):
            return self.mtp + name.removeprefix(MTP_PREFIX)
        return self.trunk + name.removeprefix(TRUNK_PREFIX)

    def forms(self, parameter: str, shape: torch.Size, config: ModelConfig) -> list[list[Piece]]:
        """Return the ways in which checkpoints hold a parameter of the network; a layout of a whole may mix them."""
        return forms(parameter, shape, config)

    def pieces(self, parameter: str, shape: torch.Size, config: ModelConfig) -> list[Piece]:
        """Return the tensors that a parameter of the network is in this layout."""
        whole, *others = forms(parameter, shape, config)
        if parameter.endswith((_QKVZ, _BA)):
            return others[0] if self.flat_projections else whole
        if others:
            stacked = self.stacked_mtp_experts if parameter.startswith(MTP_PREFIX) else self.stacked_experts
            return whole if stacked else others[0]
        return whole


_STACKED = Layout(flat_projections=True, stacked_experts=True, stacked_mtp_experts=True)


@dataclass(frozen=True)
class Piece:
    """A tensor of a checkpoint as a part of a parameter of the network.

    Attributes:
        name: as the network's own prefixes have it
        index: the part's place in the parameter, contiguous in memory; () is the whole
        rows: the rows of the parameter that the tensor's rows are, in order; None: the part as it stands
    """

    name: str
    index: Index = ()
    rows: Tensor | None = None

    def shape(self, parameter: Tensor) -> tuple[int, ...]:
        """Return the shape of this part of a parameter."""
        shape = tuple(parameter[self.index].shape)
        return shape if self.rows is None else (len(self.rows), *shape[1:])

    def read(self, parameter: Tensor) -> Tensor:
        """Return this part of a parameter: a view, or a copy if its rows lie in another order."""
        part = parameter[self.index]
        return part if self.rows is None else part[self.rows.to(part.device)]

    def write(self, parameter: Tensor, start: int, values: Tensor) -> None:
        """Set the rows of this part from `start` on."""
        part, stop = parameter[self.index], start + len(values)
        if self.rows is None:
            part[start:stop].copy_(values)
        else:
            part.index_copy_(0, self.rows[start:stop].to(part.device), values.to(part))


def forms(parameter: str, shape: torch.Size, config: ModelConfig) -> list[list[Piece]]:
    """Return the ways in which checkpoints hold a parameter of the network: first as one tensor, as it stands."""
    found = [[Piece(parameter)]]
    if parameter.endswith(GATE_UP):
        found.append(list(_gates_and_ups(parameter.removesuffix("gate_up_proj"), shape)))
    elif parameter.endswith(_DOWN):
        prefix = parameter.removesuffix("down_proj")
        found.append([Piece(f"{prefix}{expert}.down_proj.weight", (expert,)) for expert in range(shape[0])])
    elif parameter.endswith((_QKVZ, _BA)):
        rows = flat_rows(
            config.linear_num_key_heads,
            config.linear_num_value_heads,
            config.linear_key_head_dim,
            config.linear_value_head_dim,
        )
        prefix = parameter.removesuffix("qkvz.weight").removesuffix("ba.weight")
        parts = ("qkv", "z") if parameter.endswith(_QKVZ) else ("b", "a")
        found.append([Piece(f"{prefix}{part}.weight", (), rows[part]) for part in parts])
    return found


def _gates_and_ups(prefix: str, shape: torch.Size) -> Iterator[Piece]:
    width = shape[1] // 2
    for expert in range(shape[0]):
        yield Piece(f"{prefix}{expert}.gate_proj.weight", (expert, slice(0, width)))
        yield Piece(f"{prefix}{expert}.up_proj.weight", (expert, slice(width, None)))


@lru_cache(maxsize=4)
def flat_rows(key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> dict[str, Tensor]:
    """Return for each flat projection the rows of the interleaved one that it consists of."""
    repeats = value_heads // key_heads
    values = repeats * value_dim
    qkvz = torch.arange(key_heads * 2 * (key_dim + values)).view(key_heads, -1)
    q, k, v, z = (part.flatten() for part in qkvz.split([key_dim, key_dim, values, values], dim=1))
    b, a = (part.flatten() for part in torch.arange(2 * value_heads).view(key_heads, 2, repeats).unbind(1))
    return {"qkv": torch.cat([q, k, v]), "z": z, "b": b, "a": a}


# Which layout.

NAMED_LAYOUTS = {
    "qwen3_next": Layout(),
    "qwen3_5": _STACKED,
    "qwen3_5_per_expert": Layout(flat_projections=True),
    "qwen3_5_language_model": replace(_STACKED, trunk="model.language_model."),
}
"""The layouts that a model can be written in on request; each one's config.json has a model type of the same family."""


def named_layout(name: str, config: ModelConfig) -> tuple[Layout, ModelConfig]:
    """Return a layout by its name, and the configuration of the same network with the model type that is read so.

    Raises:
        UserError: there is no such layout, or its model type does not have such networks; the message names the field.
    """
    if name not in NAMED_LAYOUTS:
        raise UserError(f"layout {shown(name)}: must be one of {', '.join(NAMED_LAYOUTS)}")
    layout = NAMED_LAYOUTS[name]
    try:
        if not layout.flat_projections:
            return layout, replace(config, model_type="qwen3_next")
        return layout, replace(config, model_type="qwen3_5_moe_text" if config.num_experts else "qwen3_5_text")
    except UserError as error:
        raise UserError(f"layout {name}: {error}") from error


def written_layout(read: Layout) -> Layout:
    """Return the layout in which a checkpoint that was read is written.

    It is the same but for the prefixes, which are those of a language model without a vision tower: SGLang looks for
    the trunk under `model.` only, and vLLM for the head under `mtp.` only.
    """
    return Layout(
        flat_projections=read.flat_projections,
        stacked_experts=read.stacked_experts,
        stacked_mtp_experts=read.stacked_mtp_experts,
    )


def released_layout(model_type: str) -> Layout:
    """Return the layout in which the models of a type are released, and transformers, vLLM and SGLang read them."""
    return Layout() if model_type == "qwen3_next" else _STACKED


def layout_of(names: Collection[str], model_type: str) -> Layout:
    """Return the layout of a checkpoint by the names of its tensors; what no name tells is as `model_type` has it.

    Raises:
        UserError: names of one part lie under two prefixes; the message names one of each.
    """
    released = released_layout(model_type)
    in_mtp = [name for name in names if is_mtp(name)]
    others = [name for name in names if not is_mtp(name) and not is_vision(name)]
    trunk = _prefix(others, _TRUNK_PREFIXES, ("layers.", "embed_tokens.", "norm."))
    mtp = _prefix(in_mtp, _MTP_PREFIXES)
    head = _prefix(others, _WRAPPERS, (LM_HEAD,))
    return Layout(
        trunk=released.trunk if trunk is None else trunk,
        mtp=released.mtp if mtp is None else mtp,
        head=LM_HEAD if head is None else head + LM_HEAD,
        flat_projections=_first_of(others, ".in_proj_qkv.", ".in_proj_qkvz.", released.flat_projections),
        stacked_experts=_first_of(others, GATE_UP, _FIRST_EXPERT, released.stacked_experts),
        stacked_mtp_experts=_first_of(in_mtp, GATE_UP, _FIRST_EXPERT, released.stacked_mtp_experts),
    )


def is_mtp(name: str) -> bool:
    """Whether a checkpoint's tensor is one of the multi-token-prediction head."""
    return name.startswith(_MTP_PREFIXES)


def is_vision(name: str) -> bool:
    """Whether a checkpoint's tensor is one of the vision tower, which is not read."""
    return name.startswith(_VISION_PREFIXES)


def _prefix(names: Collection[str], prefixes: Sequence[str], beginnings: tuple[str, ...] = ("",)) -> str | None:
    """Return the prefix of the names that begin, behind one of these prefixes, as one of `beginnings`.

    Raises:
        UserError: there are two.
    """
    found: dict[str, str] = {}
    for prefix in prefixes:
        starts = tuple(prefix + beginning for beginning in beginnings)
        if (first := next((name for name in names if name.startswith(starts)), None)) is not None:
            found[prefix] = first
    if len(found) > 1:
        one, other, *_ = found.values()
        raise UserError(f"{shorten(one)} and {shorten(other)} lie under two prefixes; one of them is another model's")
    return next(iter(found), None)


def _first_of(names: Collection[str], newer: str, older: str, default: bool) -> bool:
    """Return whether the first name that has one of two parts has the newer one."""
    return next((newer in name for name in names if newer in name or older in name), default)


# Writing.


def tensors_in(layout: Layout, model: nn.Module, config: ModelConfig) -> dict[str, tuple[Tensor, Piece]]:
    """Return all that a network holds, by its names in a layout: each one's parameter, and its part of that."""
    return {
        layout.stored_name(piece.name): (tensor.detach(), piece)
        for parameter, tensor in tensors_of(model).items()
        for piece in layout.pieces(parameter, tensor.shape, config)
    }
