"""Drafts by a multi-token-prediction head: its first pass, and as many further ones as tokens are wanted.

The head is one layer, so a draft is a few small products with an output head behind them; the native implementation
makes all drafts of all sequences in one call.
"""

from __future__ import annotations

from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, check_indices, check_kind, describe, is_dense, whole_numbers
from gossamer.ops.draft_tokens.head import Draws, Head
from gossamer.ops.draft_tokens.native import native
from gossamer.ops.draft_tokens.reference import reference
from gossamer.ops.draw import check_draws
from gossamer.ops.registry import Operation
from gossamer.ops.sequences import Sequences

__all__ = ["Draws", "Head", "draft_tokens"]

DRAFT_TOKENS = Operation("draft_tokens", trains=False)
DRAFT_TOKENS.register("native", kernels.obstacle)(native)
DRAFT_TOKENS.register("reference")(reference)


def draft_tokens(following: Tensor, hidden: Tensor, head: Head, sequences: Sequences, draws: Draws) -> list[list[int]]:
    """Draft tokens of each sequence. No gradient.

    The head's keys and values of these places, and of the drafts but the last, are written.

    Args:
        following: [T] ids, the token after each place
        hidden: [T, hidden] after the trunk's final norm
        head: weights, and where keys and values lie
        sequences: whose places these are, one at least of each; room in their pages for the drafts, too
        draws: how many tokens of each, and how they are drawn

    Returns:
        Of each sequence as many as wanted, which follow the last token of its `following`.

    Raises:
        UserError: shapes, types, devices, ids or places that do not fit.
    """
    check_floats("draft_tokens", hidden=hidden)
    check_kind("draft_tokens", "head", head, Head)
    check_kind("draft_tokens", "sequences", sequences, Sequences)
    check_kind("draft_tokens", "draws", draws, Draws)
    head.layers.check("draft_tokens", hidden, sequences)
    vocab, counts, keys = len(head.embedding), draws.counts, draws.keys
    following = check_indices("draft_tokens", "following", following, vocab, hidden.device, of="vocabulary")
    if following.shape != hidden.shape[:1]:
        raise UserError(f"draft_tokens: following must be [{len(hidden)}] ids, not {describe(following)}")
    if (
        not is_dense(keys)
        or keys.ndim != 2
        or not whole_numbers(counts)
        or len(counts) != len(sequences.slots)
        or min(sequences.lengths, default=1) < 1
    ):
        raise UserError("draft_tokens: every sequence must have a place, a count and keys")
    if min(counts, default=0) < 0 or max(counts, default=0) > keys.shape[1]:
        raise UserError(f"draft_tokens: counts {counts} do not fit keys {list(keys.shape)}")
    check_draws("draft_tokens", draws.temperatures, keys, (len(counts), keys.shape[1]))
    spans = zip(sequences.tables, sequences.past, sequences.lengths, counts, strict=True)
    if any(past + length + count - 1 > len(table) * sequences.page_size for table, past, length, count in spans):
        raise UserError("draft_tokens: the sequences' pages have no room for their drafts")
    drafts: list[list[int]] = DRAFT_TOKENS(hidden.device, following, hidden, head, sequences, draws)
    return drafts
