"""Drafts by a multi-token-prediction head: its first pass, and as many further ones as tokens are wanted.

The head is one layer, so a draft is a few small products with an output head behind them; the native implementation
makes all drafts of all sequences in one call.
"""

from __future__ import annotations

from torch import Tensor

from gossamer.ops import native as kernels
from gossamer.ops.draft_tokens.head import Draws, Head
from gossamer.ops.draft_tokens.native import native
from gossamer.ops.draft_tokens.reference import reference
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
    """
    drafts: list[list[int]] = DRAFT_TOKENS(hidden.device, following, hidden, head, sequences, draws)
    return drafts
