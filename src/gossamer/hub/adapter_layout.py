"""What PEFT calls the modules beside which it puts matrices of low rank, and in which shapes it holds their factors.

A module has the name of transformers' classes, so that the projections of linear attention are apart in Qwen3.5 and its
successors: one projection of the network is then several modules, whose B are rows of its B. The experts of a layer are
stacked, E · r rows of A expert after expert, and r · E columns of B with the expert as the fastest index; or apart, a
module for each matrix of each expert, as vLLM reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.hub.layout import Index, Piece, forms
from gossamer.model.config import ModelConfig
from gossamer.model.experts import Experts
from gossamer.model.low_rank import Target


class Factors(NamedTuple):
    """The factors of what is added to a weight, scale · B A; stacked for stacked weights.

    Attributes:
        A: […, rank, width]
        B: […, rows, rank]
        scale: what the product is multiplied by
    """

    A: Tensor
    B: Tensor
    scale: float


@dataclass(frozen=True)
class Part:
    """A module of PEFT's that is a part of a weight of the network.

    Attributes:
        module: its name, such as `model.layers.0.mlp.experts.3.gate_proj`
        index: the place of the part's rows in the weight, () for all
        rows: the weight's rows that the part's are, in order; None: as they stand
    """

    module: str
    index: Index = ()
    rows: Tensor | None = None


def parts_of(target: Target, config: ModelConfig) -> list[list[Part]]:
    """Return the ways in which modules that are no stack of experts make up a target: as one, or as several."""
    found = []
    for pieces in forms(target.parameter, target.weight.shape, config):
        if isinstance(target.owner, Experts) and len(pieces) == 1 and not pieces[0].index:
            continue  # the stacked form, see `unstacked`
        found.append([_part(piece) for piece in pieces])
    return found


def _part(piece: Piece) -> Part:
    return Part(piece.name.removesuffix(".weight"), piece.index, piece.rows)


def written_parts(target: Target, config: ModelConfig, apart: bool) -> list[Part]:
    """Return the modules that a target is written as.

    Args:
        target: a target, stacked experts only with `apart`
        config: the network, whose model type says which of transformers' classes it has
        apart: a module for each matrix of each expert
    """
    ways = parts_of(target, config)
    if isinstance(target.owner, Experts):
        assert apart
        return ways[0]
    return ways[-1] if config.model_type != "qwen3_next" else ways[0]


def of_part(factors: Factors, part: Part) -> Factors:
    """Return the factors of a part of a weight: a view of A, and the part's rows of B."""
    A, B = factors.A, factors.B
    index = part.index
    if A.ndim == 3:
        expert, *index_of_rows = index
        A, B, index = A[expert], B[expert], tuple(index_of_rows)
    B = B[index] if index else B
    return Factors(A, B if part.rows is None else B[part.rows.to(B.device)], factors.scale)


def joined(shape: torch.Size, found: Sequence[tuple[Part, Factors]]) -> Factors:
    """Join the factors of parts to those of the whole weight, the reverse of `of_part`.

    Parts that share their A keep it. Others stand side by side: the ranks add up. Rows that no part has are zero.

    Args:
        shape: of the weight, [rows, width] or [E, rows, width]
        found: parts with their factors; of experts, the same number of parts for each
    """
    scale = found[0][1].scale
    if len(shape) == 2:
        return _joined_rows(shape[0], [(part.index, part.rows, factors) for part, factors in found], scale)
    stacks: list[Factors] = []
    for expert in range(shape[0]):
        own = [(part.index[1:], part.rows, factors) for part, factors in found if part.index[0] == expert]
        if not own:
            width = shape[2]
            own = [((), None, Factors(torch.zeros(1, width), torch.zeros(shape[1], 1), scale))]
        stacks.append(_joined_rows(shape[1], own, scale))
    rank = max(len(one.A) for one in stacks)
    A, B = (torch.zeros(shape[0], *sizes) for sizes in ((rank, shape[2]), (shape[1], rank)))
    for expert, one in enumerate(stacks):
        A[expert, : len(one.A)], B[expert, :, : len(one.A)] = one.A, one.B
    return Factors(A, B, scale)


def _joined_rows(rows: int, found: list[tuple[Index, Tensor | None, Factors]], scale: float) -> Factors:
    first = found[0][2].A
    is_shared = all(torch.equal(factors.A, first) for _, _, factors in found)
    B = torch.zeros(rows, len(first) if is_shared else sum(len(factors.A) for _, _, factors in found))
    column = 0
    for index, order, factors in found:
        rank = factors.B.shape[1]
        values = factors.B * (factors.scale / scale)
        part = B[index] if index else B
        columns = slice(0, rank) if is_shared else slice(column, column + rank)
        part[slice(None) if order is None else order, columns] = values
        column += rank
    return Factors(first if is_shared else torch.cat([factors.A for _, _, factors in found]), B, scale)


# Stacked experts.


def stack_names(target: Target) -> tuple[str, str]:
    """Return the modules that may hold the factors of stacked experts: the inner one of two, and the outer or only one.

    Of two parameters of a module, `gate_up_proj` is the inner one.
    """
    experts = target.parameter.rpartition(".")[0]
    return f"{experts}.base_layer", experts


def stacked(factors: Factors) -> Factors:
    """Return the factors of stacked experts as PEFT holds them, [E · r, width] and [rows, r · E]."""
    return factors._replace(A=factors.A.flatten(0, 1), B=factors.B.permute(1, 2, 0).flatten(1))


def unstacked(factors: Factors, experts: int, is_swapped: bool) -> Factors:
    """Return the factors of stacked experts that PEFT holds, [E, r, width] and [E, rows, r].

    Args:
        factors: as `stacked` returns them
        experts: E
        is_swapped: whether they are those of PEFT before 0.19, which takes the rows of a weight for its columns
    """
    A, B = factors.A.unflatten(0, (experts, -1)), factors.B.unflatten(1, (-1, experts)).permute(2, 0, 1)
    return factors._replace(A=B.mT, B=A.mT) if is_swapped else factors._replace(A=A, B=B)


def fits_stack(A: tuple[int, ...], B: tuple[int, ...], shape: torch.Size, is_swapped: bool) -> bool:
    """Whether factors of these shapes are those of a stack [E, rows, width], as PEFT holds them now or did before."""
    experts, rows, width = shape
    if is_swapped:
        rows, width = width, rows
    columns = A[0] // experts * experts
    return (columns, width) == A and (rows, columns) == B


def tail(module: str) -> str:
    """Return a module's name without that of its layer, `mlp.experts.gate_up_proj`: how PEFT's lists name it."""
    return module.split(".", 3)[3] if module.startswith("model.layers.") else module
