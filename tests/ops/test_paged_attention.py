"""Attention to keys and values in pages: implementations against the reference, and against `attention`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decoding import assert_close, sequence_batches
from exactness import DEVICE, exact_dtypes, implementations, normal, seeds
from gossamer import ops
from gossamer.ops.sequences import Sequences


@exact_dtypes
@pytest.mark.parametrize("implementation", implementations("paged_attention", but="reference"))
@given(sequence_batches(), st.integers(1, 3), st.integers(1, 3), st.sampled_from([4, 12]), seeds)
def test_paged_attention(
    implementation: str, dtype: torch.dtype, sequences: Sequences, kv_heads: int, repeats: int, width: int, seed: int
) -> None:
    random = normal(seed)
    q = random(sum(sequences.lengths), kv_heads * repeats, width)
    k, v = (random(20, sequences.page_size, kv_heads, width) for _ in range(2))
    with ops.forced(paged_attention="reference"):
        expected = ops.paged_attention(q, k, v, sequences)
    with ops.forced(paged_attention=implementation):
        actual = ops.paged_attention(*(x.to(DEVICE, dtype) for x in (q, k, v)), sequences)
    assert_close(actual, expected, dtype)


@pytest.mark.parametrize("implementation", implementations("paged_attention"))
@pytest.mark.parametrize(("past", "length"), [(0, 200), (130, 70), (63, 1), (200, 5)])
def test_paged_attention_is_the_attention_of_a_whole_text(implementation: str, past: int, length: int) -> None:
    q, k, v = (normal(n)(1, past + length, heads, 8).float() for n, heads in enumerate((4, 2, 2)))
    size, table = 16, torch.randperm(30, generator=torch.Generator().manual_seed(0))[: -(-(past + length) // 16)]
    pages = []
    for x in (k, v):
        pages.append(torch.zeros(30, size, 2, 8))
        pages[-1][table] = torch.nn.functional.pad(x[0], (0, 0, 0, 0, 0, -x.shape[1] % size)).view(-1, size, 2, 8)
    sequences = Sequences((0,), (0,), (past,), (length,), (tuple(table.tolist()),), size)
    expected = ops.attention(q, k, v)[0, past:]
    with ops.forced(paged_attention=implementation):
        actual = ops.paged_attention(q[0, past:].to(DEVICE), *(x.to(DEVICE) for x in pages), sequences)
    assert_close(actual, expected, torch.float32)
