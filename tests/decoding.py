"""Batches of sequences that decode, for tests of the operations and of the layers, and how results are compared."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from gossamer.ops.sequences import Sequences

MAX_STEP = 4  # tokens of a sequence in a step
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@st.composite
def sequence_batches(draw: st.DrawFn, page_size: int = 4, min_length: int = 0, max_length: int = MAX_STEP) -> Sequences:
    """Sequences with arbitrary pasts, in arbitrary slots and pages."""
    count = draw(st.integers(1, 4))
    slots = draw(st.permutations(range(6)))[:count]
    lengths = draw(st.lists(st.integers(min_length, max_length), min_size=count, max_size=count))
    past = draw(st.lists(st.integers(0, 11), min_size=count, max_size=count))
    accepted = [draw(st.integers(0, min(MAX_STEP, before))) for before in past]
    pages, tables, first = draw(st.permutations(range(20))), [], 0
    for before, length in zip(past, lengths, strict=True):
        needed = -(-(before + length) // page_size)
        tables.append(tuple(pages[first : first + needed]))
        first += needed
    return Sequences(tuple(slots), tuple(accepted), tuple(past), tuple(lengths), tuple(tables), page_size)


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """The same shape, and differences below `TOLERANCE` times the largest magnitude or one."""
    assert actual.shape == expected.shape
    if expected.numel():
        error = float((actual.double().cpu() - expected.double().cpu()).abs().max())
        assert error <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
