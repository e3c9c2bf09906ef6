"""Rows: an epoch of each stream has every target once; best-fit against what it promises."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data import rows as module
from gossamer.data.rows import BestFitRows, SplitRows, best_fit
from gossamer.data.shards import Shard

SIZES = st.lists(st.integers(3, 40), min_size=1, max_size=12)
LENGTHS = st.integers(2, 16)


def marked(sizes: list[int]) -> Shard:
    """Token i is i + 1."""
    offsets = np.cumsum([0, *sizes])
    return Shard(np.arange(1, offsets[-1] + 1, dtype=np.uint32), offsets, int(offsets[-1]), "f")


def all_targets(shard: Shard) -> Counter[int]:
    return Counter(set(range(1, shard.num_tokens + 1)) - set((shard.offsets[:-1] + 1).tolist()))


@pytest.mark.parametrize("kind", [SplitRows, BestFitRows])
@given(SIZES, LENGTHS, st.integers(0, 3))
def test_each_stream_covers_an_epoch_exactly(kind: type[SplitRows], sizes: list[int], length: int, seed: int) -> None:
    shard = marked([*sizes, 3])
    rows = kind(shard, length, seed)
    per_epoch: dict[tuple[str, int], Counter[int]] = {}
    done = {"full": 0, "rest": 0}
    while (
        min(rows.full_done // max(rows.num_full, 1) if rows.num_full else 9, rows.rest_epoch if rows.num_rest else 9)
        < 2
    ):
        before = rows.full_done
        row = next(rows)
        stream = "full" if rows.full_done > before else "rest"
        size = rows.num_full * (length - 1) if stream == "full" else rows.num_rest
        assert stream == "rest" or [count for _, count in row] == [length]
        assert sum(count for _, count in row) in ((length, length - 1) if kind is SplitRows else range(2, length + 1))
        for begin, count in row:
            for target in range(begin + 2, begin + count + 1):
                per_epoch.setdefault((stream, done[stream] // size), Counter())[target] += 1
                done[stream] += 1
    for epoch in range(2):
        both = per_epoch.get(("full", epoch), Counter()) + per_epoch.get(("rest", epoch), Counter())
        assert both == all_targets(shard)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_best_fit_fills_bins(sizes: list[int]) -> None:
    bins = best_fit(sizes, 20)
    assert sorted(chain.from_iterable(bins)) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in one) for one in bins]
    assert max(loads) <= 20
    # no two bins could have been one: a piece opens a bin only when no other has room for it
    assert len(loads) < 2 or sum(sorted(loads)[:2]) > 20
    assert bins == best_fit(sizes, 20)


def test_best_fit_takes_the_tightest_place() -> None:
    # 7 and 6 open bins; 4 fits the second exactly, and not the first; 3 the first
    assert best_fit([3, 7, 4, 6], 10) == [[1, 0], [3, 2]]


def test_windows_bound_what_best_fit_sorts_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 8)
    seen: list[int] = []
    real = module.best_fit

    def spy(sizes: list[int], room: int) -> list[list[int]]:
        seen.append(len(sizes))
        return real(sizes, room)

    monkeypatch.setattr(module, "best_fit", spy)
    rows = BestFitRows(marked([5] * 20), 16, seed=0)
    while rows.rest_epoch == 0:
        next(rows)
    assert seen == [8, 8, 4, 8]


def test_long_documents_are_cut_once_more_than_they_must() -> None:
    rows = BestFitRows(marked([105] * 40), 11, seed=0)  # ten full rows and four targets
    pieces: list[tuple[int, int]] = []
    while rows.rest_epoch == 0:
        pieces += next(rows)
    rest = [begin % 105 for begin, count in pieces if count != 11]
    assert set(rest) == {0, 100} and 5 < rest.count(0) < 35  # the rest before or after the full rows
