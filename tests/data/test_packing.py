"""Packing: every token predicted once an epoch, documents kept apart, positions that resume exactly."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data.packing import PACKINGS, TrainBatches, validation_batches
from gossamer.data.rows import SplitRows
from gossamer.data.token_files import Mixture, TokenFile, open_token_file
from gossamer.errors import UserError
from gossamer.ops.linear_cross_entropy import IGNORED
from packed_rows import (
    LENGTHS,
    SIZES,
    all_targets,
    check,
    inside_one_document,
    marked,
    mixture_of,
    numbered_tokens,
    spans,
    targets,
)


@given(SIZES, LENGTHS, st.integers(1, 3))
def test_validation_predicts_every_token_once(sizes: list[int], length: int, rows: int) -> None:
    token_file = marked(sizes)
    found: Counter[int] = Counter()
    batches = list(validation_batches(token_file, rows, length))
    for batch in batches:
        check(batch, len(batch.input_ids), length, token_file)
        assert all(inside_one_document(span, token_file) for span in spans(batch))
        found.update(targets(batch))
    assert found == all_targets(token_file)
    assert all(len(batch.input_ids) == rows for batch in batches[:-1]) and 1 <= len(batches[-1].input_ids) <= rows


@pytest.mark.parametrize("packing", PACKINGS)
@given(SIZES, LENGTHS, st.integers(1, 3), st.integers(0, 5))
def test_training_predicts_every_token_once_an_epoch(
    packing: str, sizes: list[int], length: int, rows: int, seed: int
) -> None:
    sizes = [*sizes, length]
    token_file = marked(sizes)
    batches = TrainBatches(mixture_of(token_file), rows, length, seed, packing)
    found: Counter[int] = Counter()
    expected = all_targets(token_file)
    kinds = SplitRows(token_file, length, seed)
    lead = rows * length // min(size for size in (kinds.num_full_rows * (length - 1), kinds.num_rest_targets) if size)
    while min(found[target] for target in expected) < 3:
        batch = next(batches)
        check(batch, rows, length, token_file)
        assert all(inside_one_document(span, token_file) for span in spans(batch))
        found.update(targets(batch))
        # nothing is far ahead: by the epochs that a batch straddles, of which the smaller kind of rows has the more
        assert max(found.values()) <= min(found[target] for target in expected) + 2 + lead
    assert set(found) == set(expected)


@pytest.mark.parametrize("packing", PACKINGS)
@given(SIZES, SIZES, LENGTHS, st.integers(0, 20), st.integers(1, 3), st.integers(1, 3))
def test_resuming_is_exact(
    packing: str, sizes: list[int], others: list[int], length: int, after: int, rows: int, rows_later: int
) -> None:
    token_files = {"a": numbered_tokens([*sizes, length]), "b": numbered_tokens([*others, length])}

    def made(rows: int) -> TrainBatches:
        return TrainBatches(Mixture(token_files, {"a": 2, "b": 1}), rows, length, 3, packing)

    first = made(rows)
    for _ in range(after):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    second = made(rows)
    next(second)
    second.load_state_dict(state)
    assert second.state_dict() == state
    for _ in range(12):
        one, other = next(first), next(second)
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)
        assert torch.equal(one.cu_seqlens, other.cu_seqlens)
    # rows do not depend on how many make a batch
    third, fourth = made(rows_later), made(1)
    third.load_state_dict(state)
    fourth.load_state_dict(state)
    expected = torch.cat([next(fourth).input_ids for _ in range(rows_later)])
    assert torch.equal(next(third).input_ids, expected)


def test_state_is_tiny_and_leaves_no_doubt() -> None:
    token_file = numbered_tokens([50] * 100)
    batches = TrainBatches(mixture_of(token_file), 4, 16, seed=1)
    for _ in range(30):
        next(batches)
    state = batches.state_dict()
    assert len(json.dumps(state)) < 300
    with pytest.raises(UserError, match="the training data is not what the checkpoint was trained on"):
        TrainBatches(mixture_of(numbered_tokens([50] * 100, "g")), 4, 16, seed=1).load_state_dict(state)
    with pytest.raises(UserError, match=r"sequence_length: .* taken with 16, not 8"):
        TrainBatches(mixture_of(token_file), 4, 8, seed=1).load_state_dict(state)
    with pytest.raises(UserError, match=r"seed: .* taken with 1, not 2"):
        TrainBatches(mixture_of(token_file), 4, 16, seed=2).load_state_dict(state)
    with pytest.raises(UserError, match=r"packing: .* taken with split, not best_fit"):
        TrainBatches(mixture_of(token_file), 4, 16, 1, "best_fit").load_state_dict(state)
    with pytest.raises(UserError, match=r"sets: .* taken with train, not code, train"):
        TrainBatches(Mixture({"train": token_file, "code": token_file}), 4, 16, 1).load_state_dict(state)
    with pytest.raises(UserError, match="of another gossamer version"):
        batches.load_state_dict({"fingerprint": "f", "seed": 1})
    TrainBatches(Mixture({"train": token_file}, {"train": 2}), 4, 16, 1).load_state_dict(
        state
    )  # it is all of it anyhow


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rest_index": 10**6}, "lies beyond the end of the data"),
        ({"rest_offset": 10**6}, "lies beyond the end of the data"),
        ({"rest_index": -1}, "sets.train.position.rest_index: must be from 0 to"),
        ({"full_done": 10**30}, "sets.train.position.full_done: "),
        ({"rest_epoch": "1"}, "sets.train.position.rest_epoch: input should be a valid integer, not '1'"),
        ({"full_done": None}, "sets.train.position.full_done: "),
    ],
)
def test_a_damaged_position_is_refused(packing: str, change: dict[str, object], message: str) -> None:
    batches = TrainBatches(mixture_of(numbered_tokens([50, 7] * 9)), 4, 16, 1, packing)
    state = json.loads(json.dumps(batches.state_dict()))
    state["sets"]["train"]["position"] |= change
    with pytest.raises(UserError, match="the checkpoint's position") as caught:
        batches.load_state_dict(state)
    assert message in str(caught.value)


def test_what_else_stands_in_a_position_is_passed_over() -> None:
    batches = TrainBatches(mixture_of(numbered_tokens([50] * 9)), 4, 16, 1)
    state = json.loads(json.dumps(batches.state_dict()))
    state["sets"]["train"]["position"]["more"] = 5
    batches.load_state_dict(state)


def test_a_changed_set_of_several_is_named() -> None:
    token_files = {"a": numbered_tokens([50] * 9), "b": numbered_tokens([50] * 9)}
    state = TrainBatches(Mixture(token_files), 4, 16, 1).state_dict()
    with pytest.raises(UserError, match=r"^sets\.b\.weight: .* taken with 1\.0, not 3\.0"):
        TrainBatches(Mixture(token_files, {"a": 1, "b": 3}), 4, 16, 1).load_state_dict(state)
    with pytest.raises(UserError, match="the training data of 'b' is not what"):
        TrainBatches(Mixture(token_files | {"b": numbered_tokens([50] * 9, "g")}), 4, 16, 1).load_state_dict(state)


def test_a_file_that_shrinks_is_no_crash(tmp_path: Path) -> None:
    token_file = tokens_on_disk(tmp_path, 4000)
    batches = TrainBatches(mixture_of(token_file), 2, 64, 0)
    next(batches)
    os.truncate(tmp_path / "train.bin", 10)
    with pytest.raises(UserError, match=r"train\.bin: was cut short while it was in use; .* --resume"):
        for _ in range(100):
            next(batches)


def test_a_file_that_is_removed_stays_open(tmp_path: Path) -> None:
    token_file = tokens_on_disk(tmp_path, 4000)
    whole = TrainBatches(mixture_of(numbered_tokens([4000])), 2, 64, 0)
    batches = TrainBatches(mixture_of(token_file), 2, 64, 0)
    (tmp_path / "train.bin").unlink()
    for _ in range(40):
        assert torch.equal(next(batches).input_ids, next(whole).input_ids)


def test_long_documents_give_full_rows() -> None:
    token_file = marked([1000])
    batches = TrainBatches(mixture_of(token_file), 1, 11, seed=0)
    rows = [spans(next(batches)) for _ in range(99)]
    full = [row[0] for row in rows if len(row) == 1]
    assert len(full) >= 98 and all(len(span) == 11 for span in full)
    begins = [span[0] for span in full]
    assert begins != sorted(begins)  # not one after the other, as they stand in the document


def test_epochs_differ() -> None:
    token_file = marked([105] * 6)
    batches = TrainBatches(mixture_of(token_file), 6 * 10, 11, seed=0)  # the full rows of an epoch
    first, second = (
        [row[0] for row in next(batches).input_ids.tolist() if row == list(range(row[0], row[0] + 11))]
        for _ in range(2)
    )
    assert first != second  # another order
    assert set(first) != set(second)  # and other cuts
    again = next(TrainBatches(mixture_of(token_file), 6 * 10, 11, seed=0))
    other = next(TrainBatches(mixture_of(token_file), 6 * 10, 11, seed=1))
    assert torch.equal(again.input_ids, next(TrainBatches(mixture_of(token_file), 6 * 10, 11, seed=0)).input_ids)
    assert not torch.equal(again.input_ids, other.input_ids)


def test_long_and_short_documents_are_mixed() -> None:
    token_file = marked([501] * 10 + [6] * 500)  # as many targets in long documents as in half of the short ones
    batches = TrainBatches(mixture_of(token_file), 10, 51, seed=0)
    for _ in range(8):
        kinds = [len(row) for row in (spans(batch) for batch in [next(batches)])]
        assert kinds[0] > 10  # more spanes than rows: short documents are among them
    long_rows = sum(len(span) == 51 for _ in range(10) for span in spans(next(batches)))
    assert 50 <= long_rows <= 70


def test_validation_order_is_fixed_and_spread() -> None:
    token_file = marked([10_001])
    first = torch.cat([batch.input_ids for batch in validation_batches(token_file, 4, 101)])
    second = torch.cat([batch.input_ids for batch in validation_batches(token_file, 7, 101)])
    assert torch.equal(first, second)
    for rows in (4, 20, 50):  # any beginning stands for the whole document
        begins = sorted(first[:rows, 0].tolist())
        gaps = np.diff([0, *begins, 10_000])
        assert gaps.max() <= 3 * 10_000 / rows


@pytest.mark.parametrize(("max_tokens", "rows"), [(1, 1), (100, 1), (101, 2), (1000, 10), (10**9, 100), (None, 100)])
def test_validation_stops_after_so_many_tokens(max_tokens: int | None, rows: int) -> None:
    token_file = marked([9901])
    found = torch.cat([batch.input_ids for batch in validation_batches(token_file, 3, 100, max_tokens)])
    whole = torch.cat([batch.input_ids for batch in validation_batches(token_file, 3, 100)])
    assert torch.equal(found, whole[:rows]) and len(whole) == 100


def test_a_short_row_is_padded_with_the_delimiter() -> None:
    (batch,) = validation_batches(numbered_tokens([4]), 2, 10)
    assert batch.input_ids.tolist() == [[0, 2, 3, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[0, 2, 3, 0] + [IGNORED] * 6]
    assert batch.cu_seqlens.tolist() == [0, 4, 10]


def tokens_on_disk(folder: Path, *sizes: int) -> TokenFile:
    """Like `numbered_tokens`, in files."""
    plain = numbered_tokens(list(sizes))
    plain.tokens.astype(np.uint16).tofile(folder / "train.bin")
    plain.offsets.tofile(folder / "train.offsets.bin")
    meta = {"dtype": "uint16", "tokens": plain.num_tokens, "documents": len(sizes), "bytes": plain.num_bytes}
    return open_token_file(folder, "train", meta, "f")


def test_memory_mapped_files(tmp_path: Path) -> None:
    plain, mapped = numbered_tokens([30, 20, 7]), tokens_on_disk(tmp_path, 30, 20, 7)
    one, other = next(TrainBatches(mixture_of(plain), 2, 8, 0)), next(TrainBatches(mixture_of(mapped), 2, 8, 0))
    assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.cu_seqlens, other.cu_seqlens)


def test_sizes_that_make_no_batch_are_refused() -> None:
    token_file = numbered_tokens([5])
    with pytest.raises(UserError, match=r"training text holds 5 tokens, fewer than one row of 6; give more text"):
        TrainBatches(mixture_of(token_file), 1, 6, 0)
    assert next(TrainBatches(mixture_of(token_file), 1, 5, -1)).input_ids.tolist() == [[0, 2, 3, 4, 0]]
    for make in (
        lambda b, t: TrainBatches(mixture_of(token_file), b, t, 0),
        lambda b, t: validation_batches(token_file, b, t),
    ):
        with pytest.raises(UserError, match="batch_size: 0"):
            make(0, 4)
        with pytest.raises(UserError, match=r"sequence_length: 1"):
            make(1, 1)
    for make in (
        lambda b, w: TrainBatches(mixture_of(token_file), b, 4, 0, world_size=w),
        lambda b, w: validation_batches(token_file, b, 4, world_size=w),
    ):
        with pytest.raises(UserError, match=r"^batch_size: 6 rows .* by 4 processes; run 1, 2, 3 or 6 of them, or "):
            make(6, 4)
        with pytest.raises(UserError, match=r"^batch_size: 1 rows .* by 8 processes; run 1 of them, or .* of 8$"):
            make(1, 8)
    with pytest.raises(UserError, match=r"packing: 'bestfit' is not split or best_fit; did you mean 'best_fit'\?"):
        TrainBatches(mixture_of(token_file), 1, 4, 0, "bestfit")
    with pytest.raises(UserError, match=r"the training text of 'b' holds 4 tokens, fewer than one row of 5"):
        TrainBatches(Mixture({"a": token_file, "b": numbered_tokens([4])}), 1, 5, 0)
    nothing = TokenFile(np.zeros(1, np.uint16), np.array([0, 1]), 0, "f")
    with pytest.raises(UserError, match="validation text holds 1 tokens, and nothing to predict"):
        validation_batches(nothing, 1, 8)
