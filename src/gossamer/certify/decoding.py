"""Decoding as the service does it, beside the float64 reference: in parts, with drafts, and through the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.model.causal_lm import CausalLM
from gossamer.model.decode.decoder import Decoder
from gossamer.model.decode.pool import StatePool
from gossamer.ops.sequences import Sequences

PAGE_SIZE, MAX_STEP_TOKENS = 8, 4


@torch.inference_mode()
def decode_in_parts(model: CausalLM, ids: Tensor, lengths: Sequence[int], rejected: int = 0) -> Tensor:
    """Compute logits as the service does, from a pool of states with a slot for each row.

    Args:
        model: in evaluation mode
        ids: [B, T], the rows of which are sequences that go on together
        lengths: tokens of each forward pass; those of up to `MAX_STEP_TOKENS` are a step of decoding, others a part of
            a prompt
        rejected: wrong tokens that each step of decoding has behind its own, and that the next one forgets

    Returns:
        [B, T, V]
    """
    rows, pages = len(ids), -(-(ids.shape[1] + rejected) // PAGE_SIZE)
    slots = tuple(range(rows))
    tables = tuple(tuple(range(row * pages, (row + 1) * pages)) for row in slots)
    weight = model.lm_head.weight
    pool = StatePool(
        model.config, rows, rows * pages, PAGE_SIZE, MAX_STEP_TOKENS + rejected, weight.device, weight.dtype
    )
    decoder, logits = Decoder(model, pool), []
    past = accepted = 0
    for part in ids.to(weight.device).split(list(lengths), dim=1):
        length = part.shape[1]
        speculative = length <= MAX_STEP_TOKENS
        if accepted and not speculative:
            decoder.replay(slots, (accepted,) * rows)
            accepted = 0
        if speculative:
            part = torch.cat([part, part.new_zeros(rows, rejected)], dim=1)
        sequences = Sequences(slots, (accepted,) * rows, (past,) * rows, (part.shape[1],) * rows, tables, PAGE_SIZE)
        hidden = decoder.forward(part.flatten(), sequences, speculative)
        logits.append(decoder.logits(hidden).view(rows, part.shape[1], len(weight))[:, :length])
        past, accepted = past + length, length if speculative else 0
    return torch.cat(logits, dim=1)
