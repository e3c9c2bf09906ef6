"""Packing: every token predicted once an epoch, documents kept apart, positions that resume exactly."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data.packing import IGNORE, Batch, TrainBatches, _Rows, validation_batches
from gossamer.data.shards import Shard
from gossamer.errors import UserError


def shard_of(sizes: list[int], fingerprint: str = "f") -> Shard:
    """Documents of ``sizes`` tokens; each token but the delimiters (0) is another number, so that it is found again."""
    offsets = np.cumsum([0, *sizes])
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.uint32)
    tokens[offsets[:-1]] = tokens[offsets[1:] - 1] = 0
    return Shard(tokens, offsets, int(offsets[-1]), fingerprint)


def marked(sizes: list[int]) -> Shard:
    """Like ``shard_of`` with numbers for the delimiters, too: token i is i + 1."""
    offsets = np.cumsum([0, *sizes])
    return Shard(np.arange(1, offsets[-1] + 1, dtype=np.uint32), offsets, int(offsets[-1]), "f")


def stretches(batch: Batch) -> list[list[int]]:
    """What lies between the boundaries, padding left out."""
    flat, labels = batch.input_ids.flatten(), batch.labels.flatten()
    bounds = batch.cu_seqlens.tolist()
    found = []
    for begin, end in pairwise(bounds):
        kept = labels[begin:end] != IGNORE
        assert bool(kept.all()) or not bool(kept.any())  # padding is a document of its own
        if bool(kept.all()):
            found.append(flat[begin:end].tolist())
    return found


def check(batch: Batch, rows: int, length: int, shard: Shard) -> None:
    """What holds for every batch."""
    assert batch.input_ids.shape == batch.labels.shape == (rows, length)
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    padding = batch.labels == IGNORE
    assert torch.equal(batch.labels[~padding], batch.input_ids[~padding])
    assert bool((batch.input_ids[padding] == int(shard.tokens[0])).all())
    assert bool((padding[:, 1:] >= padding[:, :-1]).all())  # at rows' ends alone
    cu = batch.cu_seqlens
    assert cu.dtype == torch.int32 and cu.device.type == "cpu"
    assert cu[0] == 0 and cu[-1] == rows * length and bool((cu.diff() > 0).all())
    assert set(range(0, rows * length, length)) <= set(cu.tolist())


def inside_one_document(stretch: list[int], shard: Shard) -> bool:
    """Consecutive tokens of a ``marked`` shard, all of one document."""
    begin = stretch[0] - 1
    document = np.searchsorted(shard.offsets, begin, side="right")
    return (
        stretch == list(range(begin + 1, begin + 1 + len(stretch))) and begin + len(stretch) <= shard.offsets[document]
    )


def targets(batch: Batch) -> list[int]:
    """Tokens that are predicted: all of a stretch but its first."""
    return [token for stretch in stretches(batch) for token in stretch[1:]]


def all_targets(shard: Shard) -> Counter[int]:
    return Counter(set(range(1, shard.num_tokens + 1)) - set((shard.offsets[:-1] + 1).tolist()))


SIZES = st.lists(st.integers(3, 40), min_size=1, max_size=12)
LENGTHS = st.integers(2, 16)


@given(SIZES, LENGTHS, st.integers(1, 3))
def test_validation_predicts_every_token_once(sizes: list[int], length: int, rows: int) -> None:
    shard = marked(sizes)
    found: Counter[int] = Counter()
    batches = list(validation_batches(shard, rows, length))
    for batch in batches:
        check(batch, len(batch.input_ids), length, shard)
        assert all(inside_one_document(stretch, shard) for stretch in stretches(batch))
        found.update(targets(batch))
    assert found == all_targets(shard)
    assert all(len(batch.input_ids) == rows for batch in batches[:-1]) and 1 <= len(batches[-1].input_ids) <= rows


@given(SIZES, LENGTHS, st.integers(1, 3), st.integers(0, 5))
def test_training_predicts_every_token_once_an_epoch(sizes: list[int], length: int, rows: int, seed: int) -> None:
    sizes = [*sizes, length]
    shard = marked(sizes)
    batches = TrainBatches(shard, rows, length, seed)
    found: Counter[int] = Counter()
    expected = all_targets(shard)
    kinds = _Rows(shard, length, seed)
    lead = rows * length // min(size for size in (kinds.num_full * (length - 1), kinds.num_rest) if size)
    while min(found[target] for target in expected) < 3:
        batch = next(batches)
        check(batch, rows, length, shard)
        assert all(inside_one_document(stretch, shard) for stretch in stretches(batch))
        found.update(targets(batch))
        # nothing is far ahead: by the epochs that a batch straddles, of which the smaller kind of rows has the more
        assert max(found.values()) <= min(found[target] for target in expected) + 2 + lead
    assert set(found) == set(expected)


@given(SIZES, LENGTHS, st.integers(0, 3))
def test_each_stream_covers_an_epoch_exactly(sizes: list[int], length: int, seed: int) -> None:
    shard = marked([*sizes, 3])
    rows = _Rows(shard, length, seed)
    per_epoch: dict[tuple[str, int], Counter[int]] = {}
    done = {"full": 0, "rest": 0}
    while (
        min(rows.full_done // max(rows.num_full, 1) if rows.num_full else 9, rows.rest_epoch if rows.num_rest else 9)
        < 2
    ):
        before = rows.full_done
        row = next(rows)
        kind = "full" if rows.full_done > before else "rest"
        size = rows.num_full * (length - 1) if kind == "full" else rows.num_rest
        assert kind == "rest" or [count for _, count in row] == [length]
        assert sum(count for _, count in row) in (length, length - 1)
        for begin, count in row:
            for target in range(begin + 2, begin + count + 1):
                per_epoch.setdefault((kind, done[kind] // size), Counter())[target] += 1
                done[kind] += 1
    for epoch in range(2):
        both = per_epoch.get(("full", epoch), Counter()) + per_epoch.get(("rest", epoch), Counter())
        assert both == all_targets(shard)


@given(SIZES, LENGTHS, st.integers(0, 20), st.integers(1, 3), st.integers(1, 3))
def test_resuming_is_exact(sizes: list[int], length: int, after: int, rows: int, rows_later: int) -> None:
    shard = shard_of([*sizes, length])
    first = TrainBatches(shard, rows, length, seed=3)
    for _ in range(after):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    second = TrainBatches(shard, rows, length, seed=3)
    next(second)
    second.load_state_dict(state)
    assert second.state_dict() == state
    for _ in range(12):
        one, other = next(first), next(second)
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)
        assert torch.equal(one.cu_seqlens, other.cu_seqlens)
    # rows do not depend on how many make a batch
    third, fourth = TrainBatches(shard, rows_later, length, seed=3), TrainBatches(shard, 1, length, seed=3)
    third.load_state_dict(state)
    fourth.load_state_dict(state)
    expected = torch.cat([next(fourth).input_ids for _ in range(rows_later)])
    assert torch.equal(next(third).input_ids, expected)


def test_state_is_tiny_and_leaves_no_doubt() -> None:
    shard = shard_of([50] * 100)
    batches = TrainBatches(shard, 4, 16, seed=1)
    for _ in range(30):
        next(batches)
    state = batches.state_dict()
    assert len(json.dumps(state)) < 300
    with pytest.raises(UserError, match="not what the checkpoint was trained on"):
        TrainBatches(shard_of([50] * 100, "g"), 4, 16, seed=1).load_state_dict(state)
    with pytest.raises(UserError, match=r"sequence_length: .* taken with 16, not 8"):
        TrainBatches(shard, 4, 8, seed=1).load_state_dict(state)
    with pytest.raises(UserError, match=r"seed: .* taken with 1, not 2"):
        TrainBatches(shard, 4, 16, seed=2).load_state_dict(state)


def test_long_documents_give_full_rows() -> None:
    shard = marked([1000])
    batches = TrainBatches(shard, 1, 11, seed=0)
    rows = [stretches(next(batches)) for _ in range(99)]
    full = [row[0] for row in rows if len(row) == 1]
    assert len(full) >= 98 and all(len(stretch) == 11 for stretch in full)
    begins = [stretch[0] for stretch in full]
    assert begins != sorted(begins)  # not one after the other, as they stand in the document


def test_epochs_differ() -> None:
    shard = marked([105] * 6)
    batches = TrainBatches(shard, 6 * 10, 11, seed=0)  # the full rows of an epoch
    first, second = (
        [row[0] for row in next(batches).input_ids.tolist() if row == list(range(row[0], row[0] + 11))]
        for _ in range(2)
    )
    assert first != second  # another order
    assert set(first) != set(second)  # and other cuts
    again = next(TrainBatches(shard, 6 * 10, 11, seed=0))
    other = next(TrainBatches(shard, 6 * 10, 11, seed=1))
    assert torch.equal(again.input_ids, next(TrainBatches(shard, 6 * 10, 11, seed=0)).input_ids)
    assert not torch.equal(again.input_ids, other.input_ids)


def test_long_and_short_documents_are_mixed() -> None:
    shard = marked([501] * 10 + [6] * 500)  # as many targets in long documents as in half of the short ones
    batches = TrainBatches(shard, 10, 51, seed=0)
    for _ in range(8):
        kinds = [len(row) for row in (stretches(batch) for batch in [next(batches)])]
        assert kinds[0] > 10  # more stretches than rows: short documents are among them
    long_rows = sum(len(stretch) == 51 for _ in range(10) for stretch in stretches(next(batches)))
    assert 50 <= long_rows <= 70


def test_validation_order_is_fixed_and_spread() -> None:
    shard = marked([10_001])
    first = torch.cat([batch.input_ids for batch in validation_batches(shard, 4, 101)])
    second = torch.cat([batch.input_ids for batch in validation_batches(shard, 7, 101)])
    assert torch.equal(first, second)
    for rows in (4, 20, 50):  # any beginning stands for the whole document
        begins = sorted(first[:rows, 0].tolist())
        gaps = np.diff([0, *begins, 10_000])
        assert gaps.max() <= 3 * 10_000 / rows


@pytest.mark.parametrize(("max_tokens", "rows"), [(1, 1), (100, 1), (101, 2), (1000, 10), (10**9, 100), (None, 100)])
def test_validation_stops_after_so_many_tokens(max_tokens: int | None, rows: int) -> None:
    shard = marked([9901])
    found = torch.cat([batch.input_ids for batch in validation_batches(shard, 3, 100, max_tokens)])
    whole = torch.cat([batch.input_ids for batch in validation_batches(shard, 3, 100)])
    assert torch.equal(found, whole[:rows]) and len(whole) == 100


def test_a_short_row_is_padded_with_the_delimiter() -> None:
    (batch,) = validation_batches(shard_of([4]), 2, 10)
    assert batch.input_ids.tolist() == [[0, 2, 3, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[0, 2, 3, 0] + [IGNORE] * 6]
    assert batch.cu_seqlens.tolist() == [0, 4, 10]


def test_memory_mapped_shards(tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = shard_of([30, 20, 7])
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    plain.tokens.astype(np.uint16).tofile(path)
    mapped = Shard(np.memmap(path, np.uint16, "r"), plain.offsets, plain.num_bytes, "f")
    one, other = next(TrainBatches(plain, 2, 8, 0)), next(TrainBatches(mapped, 2, 8, 0))
    assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.cu_seqlens, other.cu_seqlens)


def test_refusals() -> None:
    shard = shard_of([5])
    with pytest.raises(UserError, match=r"training text holds 5 tokens, fewer than one row of 6; give more text"):
        TrainBatches(shard, 1, 6, 0)
    assert next(TrainBatches(shard, 1, 5, -1)).input_ids.tolist() == [[0, 2, 3, 4, 0]]
    for make in (lambda b, t: TrainBatches(shard, b, t, 0), lambda b, t: validation_batches(shard, b, t)):
        with pytest.raises(UserError, match="batch_size: 0"):
            make(0, 4)
        with pytest.raises(UserError, match=r"sequence_length: 1"):
            make(1, 1)
    nothing = Shard(np.zeros(1, np.uint16), np.array([0, 1]), 0, "f")
    with pytest.raises(UserError, match="validation text holds 1 tokens, and nothing to predict"):
        validation_batches(nothing, 1, 8)
