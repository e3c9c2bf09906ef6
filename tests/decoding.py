"""Batches of sequences that decode, for tests of the operations and of the layers."""

from __future__ import annotations

from hypothesis import strategies as st

from gossamer.ops.sequences import Sequences

MAX_STEP = 4  # tokens of a sequence in a step


@st.composite
def batches(draw: st.DrawFn, page_size: int = 4, least: int = 0, most: int = MAX_STEP) -> Sequences:
    """Sequences with any pasts, in slots and pages that lie anywhere."""
    count = draw(st.integers(1, 4))
    slots = draw(st.permutations(range(6)))[:count]
    lengths = draw(st.lists(st.integers(least, most), min_size=count, max_size=count))
    past = draw(st.lists(st.integers(0, 11), min_size=count, max_size=count))
    kept = [draw(st.integers(0, min(MAX_STEP, before))) for before in past]
    pages, tables, first = draw(st.permutations(range(20))), [], 0
    for before, length in zip(past, lengths, strict=True):
        needed = -(-(before + length) // page_size)
        tables.append(tuple(pages[first : first + needed]))
        first += needed
    return Sequences(tuple(slots), tuple(kept), tuple(past), tuple(lengths), tuple(tables), page_size)
