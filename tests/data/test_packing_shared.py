"""Batches of several sets, and batches that several processes share."""

from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data.packing import PACKINGS, TrainBatches, validation_batches
from gossamer.data.token_files import Mixture
from gossamer.ops.linear_cross_entropy import IGNORED
from packed_rows import LENGTHS, SIZES, check, inside_one_document, marked, numbered_tokens, spans


@pytest.mark.parametrize("packing", PACKINGS)
def test_sets_get_their_share_of_the_tokens(packing: str) -> None:
    token_files = {"long": marked([400] * 20), "short": marked([9, 12, 5] * 30), "other": marked([70] * 9)}
    weights = {"long": 5.0, "short": 1.5, "other": 1.0, "none": 0.0}
    mixture = Mixture(token_files | {"none": marked([5])}, weights)
    assert set(mixture.token_files) == set(token_files)
    names = {id(token_file): name for name, token_file in token_files.items()}
    batches = TrainBatches(mixture, 1, 32, 0, packing)
    drawn: Counter[str] = Counter()
    for _ in range(600):
        token_file, row = batches._next_row()
        drawn[names[id(token_file)]] += sum(count for _, count in row)
        assert all(inside_one_document(list(range(begin + 1, begin + 1 + count)), token_file) for begin, count in row)
        # at any time, not in the end alone, and to a row
        for name, tokens in drawn.items():
            assert abs(tokens - sum(drawn.values()) * weights[name] / 7.5) <= 2 * 32
    assert batches.state_dict()["sets"]["short"]["position"]["rest_epoch"] > 1  # each has epochs of its own
    assert batches.state_dict()["sets"]["long"]["position"]["full_done"] < 20 * 12 * 2


@pytest.mark.parametrize("packing", PACKINGS)
@given(SIZES, LENGTHS, st.sampled_from([(4, 1), (4, 2), (4, 4), (6, 3), (6, 2)]))
def test_processes_share_the_same_batches(packing: str, sizes: list[int], length: int, shape: tuple[int, int]) -> None:
    rows, world = shape
    data = Mixture({"a": numbered_tokens([*sizes, length]), "b": numbered_tokens([length, *sizes])})
    whole = TrainBatches(data, rows, length, 1, packing)
    ranks = [TrainBatches(data, rows, length, 1, packing, rank, world) for rank in range(world)]
    for _ in range(5):
        expected, parts = next(whole), [next(one) for one in ranks]
        assert torch.equal(torch.cat([part.input_ids for part in parts]), expected.input_ids)
        assert torch.equal(torch.cat([part.labels for part in parts]), expected.labels)
        for part in parts:
            check(part, rows // world, length, data.token_files["a"])
        assert list(chain.from_iterable(map(spans, parts))) == spans(expected)
        assert all(one.state_dict() == whole.state_dict() for one in ranks)
    again = TrainBatches(data, rows, length, 1, packing)  # a state of many processes goes on in one
    again.load_state_dict(ranks[-1].state_dict())
    assert torch.equal(next(again).input_ids, next(whole).input_ids)


@given(SIZES, LENGTHS, st.sampled_from([(4, 2), (4, 4), (6, 3)]), st.none() | st.integers(1, 100))
def test_processes_share_a_validation_pass(
    sizes: list[int], length: int, shape: tuple[int, int], most: int | None
) -> None:
    rows, world = shape
    token_file = marked(sizes)
    whole = list(validation_batches(token_file, rows, length, most))
    ranks = [list(validation_batches(token_file, rows, length, most, rank, world)) for rank in range(world)]
    assert all(len(batches) == len(whole) for batches in ranks)
    for parts, expected in zip(zip(*ranks, strict=True), whole, strict=True):
        assert len({part.input_ids.shape for part in parts}) == 1  # collectives match
        for part in parts:
            check(part, len(part.input_ids), length, token_file)
        assert list(chain.from_iterable(map(spans, parts))) == spans(expected)  # and nothing but padding besides


def test_a_process_without_rows_gets_padding() -> None:
    token_file = numbered_tokens([4])
    (batch,) = validation_batches(token_file, 4, 10, rank=3, world_size=4)
    assert batch.input_ids.tolist() == [[0] * 10] and batch.labels.tolist() == [[IGNORED] * 10]
    assert batch.cu_seqlens.tolist() == [0, 10]
