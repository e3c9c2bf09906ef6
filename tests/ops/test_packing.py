"""Layouts derived from where documents begin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exactness import cumulative, lengths
from gossamer import ops
from gossamer.errors import UserError
from gossamer.ops.packing import chunk_layout, document_lengths, positions

CPU = torch.device("cpu")
documents = st.lists(lengths, min_size=1, max_size=8)


@given(documents=documents)
def test_lengths_are_read_back(documents: list[int]) -> None:
    assert document_lengths(1, sum(documents), cumulative(documents)) == tuple(documents)


def test_without_edges_every_row_is_a_document() -> None:
    assert document_lengths(3, 5, None) == (5, 5, 5)


@pytest.mark.parametrize("edges", [[], [4], [0, 3], [0, 5], [1, 4], [0, 3, 2, 4]], ids=str)
def test_wrong_edges_are_refused(edges: list[int]) -> None:
    with pytest.raises(UserError, match="cu_seqlens"):
        document_lengths(2, 2, torch.tensor(edges, dtype=torch.int32))


@given(documents=documents)
def test_positions_count_from_each_documents_start(documents: list[int]) -> None:
    expected = [place for length in documents for place in range(length)]
    assert positions(tuple(documents), CPU).tolist() == expected


@settings(max_examples=60)
@given(documents=documents, chunk=st.sampled_from([1, 2, 16, 64]))
@example(documents=[0, 0], chunk=64)
@example(documents=[64, 64], chunk=64)
def test_a_chunk_holds_one_document_in_order(documents: list[int], chunk: int) -> None:
    layout = chunk_layout(tuple(documents), chunk, CPU)
    total = sum(documents)
    slots = torch.arange(total) if layout.slots is None else layout.slots
    assert layout.num_chunks == sum(-(-length // chunk) for length in documents)
    assert len(set(slots.tolist())) == total
    assert sorted(layout.order) == list(range(len(documents)))

    # Walk as the scan does: step by step, the chunks of the documents still active in the layout's order.
    walked: dict[int, list[int]] = {document: [] for document in range(len(documents))}
    first = 0
    for active in layout.active:
        for rank, document in enumerate(layout.order[:active]):
            walked[document] += range((first + rank) * chunk, (first + rank + 1) * chunk)
        first += active
    start = 0
    for document, length in enumerate(documents):
        assert slots[start : start + length].tolist() == walked[document][:length]
        assert 0 <= len(walked[document]) - length < chunk
        start += length


def test_training_after_inference_on_documents_of_the_same_lengths() -> None:
    """A layout that is first made in inference mode is cached, and autograd must be able to save it."""
    edges = cumulative([3, 7, 11])  # lengths that no other test asks for first
    x, weight = torch.randn(1, 21, 4), torch.randn(4, 4)
    gates = torch.zeros(1, 21, 1)
    q = x.unsqueeze(2)
    for mode in (True, False):
        with torch.inference_mode(mode):
            trained = x.clone().requires_grad_(not mode)
            y, _ = ops.short_conv(trained, weight, cu_seqlens=edges)
            o, _ = ops.delta_rule(y.unsqueeze(2), q, q, gates, gates + 0.5, cu_seqlens=edges)
    o.sum().backward()
    assert trained.grad is not None and trained.grad.isfinite().all()
