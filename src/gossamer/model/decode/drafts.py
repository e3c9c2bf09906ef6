"""Drafts by a multi-token-prediction head: its first pass, and as many further ones as tokens are wanted.

The head is one layer, so a draft is a few small products with an output head behind them. The native implementation
(ops/native/draft.cpp) makes all drafts of all sequences in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer import ops
from gossamer.errors import UserError
from gossamer.model.decode.layers import MAX_TOKENS, DecoderLayers, decode_layers
from gossamer.ops import native as kernels
from gossamer.ops.checks import are_integers, check_floats, check_indices, check_kind, describe, is_dense, shape
from gossamer.ops.matrix import (
    Int8Matrix,
    Matrix,
    check_matrix,
    is_matrix_for_kernels,
    is_weight_for_kernels,
    kernel_arguments,
)
from gossamer.ops.registry import Operation
from gossamer.ops.sample_tokens import check_sampling
from gossamer.ops.sequences import Sequences

if TYPE_CHECKING:
    from gossamer.model.mtp import MultiTokenPrediction

DRAFT_TOKENS = Operation("draft_tokens", has_gradient=False)


@dataclass(frozen=True, eq=False)
class DraftHead:
    """A multi-token-prediction head that decodes, with the output head that it shares with the trunk.

    Shapes are checked when this is made, and not again at every step.

    Attributes:
        mtp: the head as a module
        layers: its one layer and the norm behind it
        embed_tokens: [V, hidden], the embedding of tokens
        pre_fc_norm_embedding: [hidden], what is multiplied with in the norm of a token's embedding
        pre_fc_norm_hidden: [hidden], what is multiplied with in the norm of a hidden state
        fc: [hidden, 2 · hidden], the projection that joins the two
        lm_head: [V, hidden], the output head
    """

    mtp: MultiTokenPrediction
    layers: DecoderLayers
    embed_tokens: Tensor
    pre_fc_norm_embedding: Tensor
    pre_fc_norm_hidden: Tensor
    fc: Matrix
    lm_head: Matrix

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together (UserError)."""
        check_kind("draft_tokens", "layers", self.layers, DecoderLayers)
        check_floats("draft_tokens", final_norm=self.layers.final_norm, embed_tokens=self.embed_tokens)
        hidden, vocab = len(self.layers.final_norm), self.embed_tokens.shape[0] if self.embed_tokens.ndim else 0
        shapes = {"embed_tokens": (vocab, hidden), "pre_fc_norm_embedding": (hidden,), "pre_fc_norm_hidden": (hidden,)}
        shapes |= {"fc": (hidden, 2 * hidden), "lm_head": (vocab, hidden)}
        for name, expected in shapes.items():
            matrix = values = floats = getattr(self, name)
            if name in ("fc", "lm_head") and isinstance(matrix, Int8Matrix):
                check_matrix("draft_tokens", name, matrix)
                values, floats = matrix
            check_floats("draft_tokens", **{"final_norm": self.layers.final_norm, name: floats})
            if tuple(values.shape) != expected:
                raise UserError(f"draft_tokens: {name} {shape(values)} must be {list(expected)}")

    @property
    def is_readable_by_kernels(self) -> bool:
        """Whether the native kernels can read all weights and states."""
        matrices, norms = (
            (self.embed_tokens, self.fc, self.lm_head),
            (self.pre_fc_norm_embedding, self.pre_fc_norm_hidden),
        )
        are_readable = all(map(is_matrix_for_kernels, matrices)) and all(map(is_weight_for_kernels, norms))
        return self.layers.is_readable_by_kernels and are_readable

    def join(self, next_token_ids: Tensor, hidden: Tensor) -> Tensor:
        """Join tokens [T] and hidden states [T, hidden] to what the head's layer reads, [T, hidden]."""
        return self.mtp.join(F.embedding(next_token_ids, self.embed_tokens).to(hidden.dtype), hidden)

    def forward(self, next_token_ids: Tensor, hidden: Tensor, sequences: Sequences) -> Tensor:
        """Apply the head once, and add its keys and values to the cache.

        Args:
            next_token_ids: [T] ids, the token after each position
            hidden: [T, hidden] after the trunk's final norm, or what this gave for the position before
            sequences: the sequences to which the positions belong

        Returns:
            [T, hidden], after the head's norm: the output head reads the token after `next_token_ids` from it.
        """
        return decode_layers(self.join(next_token_ids, hidden), self.layers, sequences, speculative=True)


class DraftSampling(NamedTuple):
    """How many drafts of each of N sequences are wanted, and how they are sampled (see `ops.sample_tokens`).

    Attributes:
        counts: [N] drafts wanted
        temperatures: [N] float32 on the CPU
        keys: [N, largest count] int64 on the CPU, for the random numbers of each draft
    """

    counts: tuple[int, ...]
    temperatures: Tensor
    keys: Tensor


def draft_tokens(
    next_token_ids: Tensor, hidden: Tensor, head: DraftHead, sequences: Sequences, sampling: DraftSampling
) -> list[list[int]]:
    """Draft tokens of each sequence. There is no gradient.

    The MTP head's keys and values of these positions, and of the drafts but the last, are written.

    Args:
        next_token_ids: [T] ids, the token after each position
        hidden: [T, hidden] after the trunk's final norm
        head: the head with its weights and memory
        sequences: the sequences to which the positions belong, at least one of each;
            their pages must have room for the drafts as well
        sampling: how many drafts are wanted, and how they are sampled

    Returns:
        For each sequence as many drafts as are wanted, which follow the last token of its `next_token_ids`.

    Raises:
        UserError: shapes, types, devices, ids or positions do not fit.
    """
    check_floats("draft_tokens", hidden=hidden)
    check_kind("draft_tokens", "head", head, DraftHead)
    check_kind("draft_tokens", "sequences", sequences, Sequences)
    check_kind("draft_tokens", "sampling", sampling, DraftSampling)
    head.layers.check("draft_tokens", hidden, sequences)
    vocab = len(head.embed_tokens)
    next_token_ids = check_indices(
        "draft_tokens", "next_token_ids", next_token_ids, vocab, hidden.device, of="vocabulary"
    )
    if next_token_ids.shape != hidden.shape[:1]:
        raise UserError(f"draft_tokens: next_token_ids must be [{len(hidden)}] ids, not {describe(next_token_ids)}")
    _check_counts(sequences, sampling)
    drafts: list[list[int]] = DRAFT_TOKENS(hidden.device, next_token_ids, hidden, head, sequences, sampling)
    return drafts


def _check_counts(sequences: Sequences, sampling: DraftSampling) -> None:
    """Refuse counts and keys that do not belong to the sequences, or drafts that have no room (UserError)."""
    counts, keys = sampling.counts, sampling.keys
    if (
        not is_dense(keys)
        or keys.ndim != 2
        or not are_integers(counts)
        or len(counts) != len(sequences.slots)
        or min(sequences.lengths, default=1) < 1
    ):
        raise UserError("draft_tokens: every sequence must have a position, a count and keys")
    if min(counts, default=0) < 0 or max(counts, default=0) > keys.shape[1]:
        raise UserError(f"draft_tokens: counts {counts} do not fit keys {list(keys.shape)}")
    check_sampling("draft_tokens", sampling.temperatures, keys, (len(counts), keys.shape[1]))
    spans = zip(sequences.page_tables, sequences.past, sequences.lengths, counts, strict=True)
    if any(past + length + count - 1 > len(table) * sequences.page_size for table, past, length, count in spans):
        raise UserError("draft_tokens: the sequences' pages have no room for their drafts")


def native(
    next_token_ids: Tensor, hidden: Tensor, head: DraftHead, sequences: Sequences, sampling: DraftSampling
) -> list[list[int]]:
    """Make all drafts in one call; what the kernels cannot read, and many positions, go step by step."""
    if not head.is_readable_by_kernels or len(next_token_ids) > MAX_TOKENS:
        return reference(next_token_ids, hidden, head, sequences, sampling)
    counts, layers, table = torch.tensor(sampling.counts), head.layers, sequences.padded_page_tables
    tokens = torch.empty(sampling.keys.shape, dtype=torch.int64)
    embedding, _, embedding_type = kernel_arguments(head.embed_tokens)
    kernels.call(
        "draft_tokens", tokens, next_token_ids.contiguous(), hidden.contiguous(), embedding, embedding_type,
        head.pre_fc_norm_embedding, head.pre_fc_norm_hidden, *kernel_arguments(head.fc), layers.rows,
        sequences.step_metadata, table, layers.frequencies, layers.final_norm, *kernel_arguments(head.lm_head),
        len(head.embed_tokens), counts, sampling.temperatures, sampling.keys, sampling.keys.shape[1],
        *table.shape, layers.norm.eps,
    )  # fmt: skip
    rows: list[list[int]] = tokens.tolist()
    return [row[:count] for row, count in zip(rows, sampling.counts, strict=True)]


def reference(
    next_token_ids: Tensor, hidden: Tensor, head: DraftHead, sequences: Sequences, sampling: DraftSampling
) -> list[list[int]]:
    """Apply the head again and again, a draft of every sequence at a time."""
    drafts: list[list[int]] = [[] for _ in sampling.counts]
    last = [end - 1 for end in accumulate(sequences.lengths)]
    hidden = head.forward(next_token_ids, hidden, sequences)[last]
    group = list(range(len(drafts)))  # the sequences whose hidden states these are
    while True:
        rows = [row for row, number in enumerate(group) if len(drafts[number]) < sampling.counts[number]]
        if not rows:
            return drafts
        if len(rows) < len(group):
            group, hidden = [group[row] for row in rows], hidden[rows]
        position = len(drafts[group[0]])
        if position:  # the head again, on its own output and the newest draft
            newest = torch.tensor([drafts[number][-1] for number in group], device=hidden.device)
            hidden = head.forward(newest, hidden, _next_positions(sequences, group, position))
        logits = ops.small_linear(hidden, head.lm_head).float()
        tokens = ops.sample_tokens(logits, sampling.temperatures[group], sampling.keys[group, position]).tolist()
        for number, token in zip(group, tokens, strict=True):
            drafts[number].append(max(token, 0))  # where no logit is finite any token will do: it is not accepted


def _next_positions(sequences: Sequences, group: list[int], drafts: int) -> Sequences:
    """Return one position of each sequence of the group, behind so many drafts."""
    past = tuple(sequences.past[number] + sequences.lengths[number] + drafts - 1 for number in group)
    slots = tuple(sequences.slots[number] for number in group)
    tables = tuple(sequences.page_tables[number] for number in group)
    return Sequences(slots, (0,) * len(group), past, (1,) * len(group), tables, sequences.page_size)


DRAFT_TOKENS.register("native", native, kernels.obstacle)
DRAFT_TOKENS.register("reference", reference)
