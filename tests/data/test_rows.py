"""Rows: an epoch of each stream has every target once; best-fit against what it promises."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data import rows as module
from gossamer.data.packing import TrainBatches
from gossamer.data.rows import BestFitRows, SplitRows, best_fit
from gossamer.data.sources import standard_library
from gossamer.ops.linear_cross_entropy import IGNORED
from packed_rows import LENGTHS, SIZES, all_targets, marked, mixture_of, numbered_tokens, spans


@pytest.mark.parametrize("kind", [SplitRows, BestFitRows])
@given(SIZES, LENGTHS, st.integers(0, 3))
def test_each_stream_covers_an_epoch_exactly(kind: type[SplitRows], sizes: list[int], length: int, seed: int) -> None:
    token_file = marked([*sizes, 3])
    rows = kind(token_file, length, seed)
    per_epoch: dict[tuple[str, int], Counter[int]] = {}
    done = {"full": 0, "rest": 0}

    def epoch() -> int:
        of_full_rows = rows.full_rows_read // rows.num_full_rows if rows.num_full_rows else 9
        return min(of_full_rows, rows.rest_epoch if rows.num_rest_targets else 9)

    while epoch() < 2:
        before = rows.full_rows_read
        row = next(rows)
        stream = "full" if rows.full_rows_read > before else "rest"
        size = rows.num_full_rows * (length - 1) if stream == "full" else rows.num_rest_targets
        assert stream == "rest" or [count for _, count in row] == [length]
        assert sum(count for _, count in row) in ((length, length - 1) if kind is SplitRows else range(2, length + 1))
        for begin, count in row:
            for target in range(begin + 2, begin + count + 1):
                per_epoch.setdefault((stream, done[stream] // size), Counter())[target] += 1
                done[stream] += 1
    for epoch in range(2):
        both = per_epoch.get(("full", epoch), Counter()) + per_epoch.get(("rest", epoch), Counter())
        assert both == all_targets(token_file)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_best_fit_fills_bins(sizes: list[int]) -> None:
    bins = best_fit(sizes, 20)
    assert sorted(chain.from_iterable(bins)) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in one) for one in bins]
    assert max(loads) <= 20
    # no two bins could have been one: a chunk opens a bin only when no other has room for it
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
    fragments: list[tuple[int, int]] = []
    while rows.rest_epoch == 0:
        fragments += next(rows)
    rest = [begin % 105 for begin, count in fragments if count != 11]
    assert set(rest) == {0, 100} and 5 < rest.count(0) < 35  # the rest before or after the full rows


def lognormal(median: float, sigma: float, count: int) -> list[int]:
    drawn = np.random.default_rng(0).lognormal(np.log(median), sigma, count)
    return np.clip(drawn, 3, 10**6).astype(int).tolist()


@pytest.mark.parametrize("window", [1 << 16, 1 << 12])
@pytest.mark.parametrize(
    ("name", "sizes", "length"),
    [
        ("web pages", lognormal(600, 1.2, 20_000), 2048),
        ("short rows", lognormal(600, 1.2, 5_000), 512),
        ("chats", lognormal(250, 0.8, 20_000), 2048),
        ("books", lognormal(80_000, 0.7, 60), 2048),
        ("tweets", lognormal(30, 0.5, 20_000), 512),
        ("even", np.random.default_rng(0).integers(3, 4096, 10_000).tolist(), 2048),
    ],
)
def test_best_fit_uses_nearly_every_position(
    name: str, sizes: list[int], length: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WINDOW", window)
    token_file = numbered_tokens(sizes)
    batches = TrainBatches(mixture_of(token_file), 1, length, 0, "best_fit")
    assert batches.utilization == 1.0
    while batches.state_dict()["sets"]["train"]["position"]["rest_epoch"] == 0:  # an epoch
        batches._next_row()
    assert 0.99 < batches.utilization < 1.0


def test_best_fit_on_the_standard_library() -> None:
    sizes = [max(3, path.stat().st_size // 4) for path, _ in standard_library()]
    batches = TrainBatches(mixture_of(numbered_tokens([size for size in sizes if size])), 1, 512, 0, "best_fit")
    while batches.state_dict()["sets"]["train"]["position"]["rest_epoch"] == 0:
        batches._next_row()
    assert batches.utilization > 0.99


def test_utilization_counts_padding() -> None:
    batches = TrainBatches(mixture_of(numbered_tokens([6, 6, 6])), 3, 10, 0, "best_fit")
    batch = next(batches)
    assert batches.utilization == pytest.approx(float((batch.labels != IGNORED).float().mean())) == pytest.approx(0.6)


def test_best_fit_keeps_documents_whole() -> None:
    sizes = [3 + index % 30 for index in range(300)]
    token_file = marked(sizes)
    batches = TrainBatches(mixture_of(token_file), 4, 32, 0, "best_fit")
    seen: Counter[int] = Counter()
    for _ in range(30):
        for span in spans(next(batches)):
            document = int(np.searchsorted(token_file.offsets, span[0] - 1, side="right")) - 1
            assert len(span) == sizes[document]
            seen[document] += 1
    assert len(seen) > 200 and max(seen.values()) == 1
