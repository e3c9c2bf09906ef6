"""Packing: every token predicted once an epoch, documents kept apart, positions that resume exactly."""

import json
import os
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data import rows as rows_module
from gossamer.data.files import standard_library
from gossamer.data.mixture import Mixture
from gossamer.data.packing import IGNORE, PACKINGS, Batch, TrainBatches, validation_batches
from gossamer.data.rows import SplitRows
from gossamer.data.shards import Shard, open_shard
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


def alone(shard: Shard) -> Mixture:
    return Mixture({"train": shard})


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


@pytest.mark.parametrize("packing", PACKINGS)
@given(SIZES, LENGTHS, st.integers(1, 3), st.integers(0, 5))
def test_training_predicts_every_token_once_an_epoch(
    packing: str, sizes: list[int], length: int, rows: int, seed: int
) -> None:
    sizes = [*sizes, length]
    shard = marked(sizes)
    batches = TrainBatches(alone(shard), rows, length, seed, packing)
    found: Counter[int] = Counter()
    expected = all_targets(shard)
    kinds = SplitRows(shard, length, seed)
    lead = rows * length // min(size for size in (kinds.num_full * (length - 1), kinds.num_rest) if size)
    while min(found[target] for target in expected) < 3:
        batch = next(batches)
        check(batch, rows, length, shard)
        assert all(inside_one_document(stretch, shard) for stretch in stretches(batch))
        found.update(targets(batch))
        # nothing is far ahead: by the epochs that a batch straddles, of which the smaller kind of rows has the more
        assert max(found.values()) <= min(found[target] for target in expected) + 2 + lead
    assert set(found) == set(expected)


@pytest.mark.parametrize("packing", PACKINGS)
@given(SIZES, SIZES, LENGTHS, st.integers(0, 20), st.integers(1, 3), st.integers(1, 3))
def test_resuming_is_exact(
    packing: str, sizes: list[int], others: list[int], length: int, after: int, rows: int, rows_later: int
) -> None:
    shards = {"a": shard_of([*sizes, length]), "b": shard_of([*others, length])}

    def made(rows: int) -> TrainBatches:
        return TrainBatches(Mixture(shards, {"a": 2, "b": 1}), rows, length, 3, packing)

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
    shard = shard_of([50] * 100)
    batches = TrainBatches(alone(shard), 4, 16, seed=1)
    for _ in range(30):
        next(batches)
    state = batches.state_dict()
    assert len(json.dumps(state)) < 300
    with pytest.raises(UserError, match="the training data is not what the checkpoint was trained on"):
        TrainBatches(alone(shard_of([50] * 100, "g")), 4, 16, seed=1).load_state_dict(state)
    with pytest.raises(UserError, match=r"sequence_length: .* taken with 16, not 8"):
        TrainBatches(alone(shard), 4, 8, seed=1).load_state_dict(state)
    with pytest.raises(UserError, match=r"seed: .* taken with 1, not 2"):
        TrainBatches(alone(shard), 4, 16, seed=2).load_state_dict(state)
    with pytest.raises(UserError, match=r"packing: .* taken with split, not best_fit"):
        TrainBatches(alone(shard), 4, 16, 1, "best_fit").load_state_dict(state)
    with pytest.raises(UserError, match=r"sets: .* taken with train, not train, code"):
        TrainBatches(Mixture({"train": shard, "code": shard}), 4, 16, 1).load_state_dict(state)
    with pytest.raises(UserError, match="of another gossamer version"):
        batches.load_state_dict({"fingerprint": "f", "seed": 1})
    TrainBatches(Mixture({"train": shard}, {"train": 2}), 4, 16, 1).load_state_dict(state)  # it is all of it anyhow


def test_a_changed_set_of_several_is_named() -> None:
    shards = {"a": shard_of([50] * 9), "b": shard_of([50] * 9)}
    state = TrainBatches(Mixture(shards), 4, 16, 1).state_dict()
    with pytest.raises(UserError, match=r"^sets\.b\.weight: .* taken with 1\.0, not 3\.0"):
        TrainBatches(Mixture(shards, {"a": 1, "b": 3}), 4, 16, 1).load_state_dict(state)
    with pytest.raises(UserError, match="the training data of 'b' is not what"):
        TrainBatches(Mixture(shards | {"b": shard_of([50] * 9, "g")}), 4, 16, 1).load_state_dict(state)


@pytest.mark.parametrize("packing", PACKINGS)
def test_sets_get_their_share_of_the_tokens(packing: str) -> None:
    shards = {"long": marked([400] * 20), "short": marked([9, 12, 5] * 30), "other": marked([70] * 9)}
    weights = {"long": 5.0, "short": 1.5, "other": 1.0, "none": 0.0}
    mixture = Mixture(shards | {"none": marked([5])}, weights)
    assert set(mixture.shards) == set(shards)
    names = {id(shard): name for name, shard in shards.items()}
    batches = TrainBatches(mixture, 1, 32, 0, packing)
    drawn: Counter[str] = Counter()
    for _ in range(600):
        shard, row = batches._next_row()
        drawn[names[id(shard)]] += sum(count for _, count in row)
        assert all(inside_one_document(list(range(begin + 1, begin + 1 + count)), shard) for begin, count in row)
        # at any time, not in the end alone, and to a row
        for name, tokens in drawn.items():
            assert abs(tokens - sum(drawn.values()) * weights[name] / 7.5) <= 2 * 32
    assert batches.state_dict()["sets"]["short"]["position"]["rest_epoch"] > 1  # each has epochs of its own
    assert batches.state_dict()["sets"]["long"]["position"]["full_done"] < 20 * 12 * 2


@pytest.mark.parametrize("packing", PACKINGS)
@given(SIZES, LENGTHS, st.sampled_from([(4, 1), (4, 2), (4, 4), (6, 3), (6, 2)]))
def test_processes_share_the_same_batches(packing: str, sizes: list[int], length: int, shape: tuple[int, int]) -> None:
    rows, world = shape
    data = Mixture({"a": shard_of([*sizes, length]), "b": shard_of([length, *sizes])})
    whole = TrainBatches(data, rows, length, 1, packing)
    ranks = [TrainBatches(data, rows, length, 1, packing, rank, world) for rank in range(world)]
    for _ in range(5):
        expected, parts = next(whole), [next(one) for one in ranks]
        assert torch.equal(torch.cat([part.input_ids for part in parts]), expected.input_ids)
        assert torch.equal(torch.cat([part.labels for part in parts]), expected.labels)
        for part in parts:
            check(part, rows // world, length, data.shards["a"])
        assert list(chain.from_iterable(map(stretches, parts))) == stretches(expected)
        assert all(one.state_dict() == whole.state_dict() for one in ranks)
    again = TrainBatches(data, rows, length, 1, packing)  # a state of many processes goes on in one
    again.load_state_dict(ranks[-1].state_dict())
    assert torch.equal(next(again).input_ids, next(whole).input_ids)


@given(SIZES, LENGTHS, st.sampled_from([(4, 2), (4, 4), (6, 3)]), st.none() | st.integers(1, 100))
def test_processes_share_a_validation_pass(
    sizes: list[int], length: int, shape: tuple[int, int], most: int | None
) -> None:
    rows, world = shape
    shard = marked(sizes)
    whole = list(validation_batches(shard, rows, length, most))
    ranks = [list(validation_batches(shard, rows, length, most, rank, world)) for rank in range(world)]
    assert all(len(batches) == len(whole) for batches in ranks)
    for parts, expected in zip(zip(*ranks, strict=True), whole, strict=True):
        assert len({part.input_ids.shape for part in parts}) == 1  # collectives match
        for part in parts:
            check(part, len(part.input_ids), length, shard)
        assert list(chain.from_iterable(map(stretches, parts))) == stretches(
            expected
        )  # and nothing but padding besides


def test_a_process_without_rows_gets_padding() -> None:
    shard = shard_of([4])
    (batch,) = validation_batches(shard, 4, 10, rank=3, world=4)
    assert batch.input_ids.tolist() == [[0] * 10] and batch.labels.tolist() == [[IGNORE] * 10]
    assert batch.cu_seqlens.tolist() == [0, 10]


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
    monkeypatch.setattr(rows_module, "_WINDOW", window)
    shard = shard_of(sizes)
    batches = TrainBatches(alone(shard), 1, length, 0, "best_fit")
    assert batches.utilisation == 1.0
    while batches.state_dict()["sets"]["train"]["position"]["rest_epoch"] == 0:  # an epoch
        batches._next_row()
    assert 0.99 < batches.utilisation < 1.0


def test_best_fit_on_the_standard_library() -> None:
    sizes = [max(3, path.stat().st_size // 4) for path, _ in standard_library()]
    batches = TrainBatches(alone(shard_of([size for size in sizes if size])), 1, 512, 0, "best_fit")
    while batches.state_dict()["sets"]["train"]["position"]["rest_epoch"] == 0:
        batches._next_row()
    assert batches.utilisation > 0.99


def test_utilisation_counts_padding() -> None:
    batches = TrainBatches(alone(shard_of([6, 6, 6])), 3, 10, 0, "best_fit")
    batch = next(batches)
    assert batches.utilisation == pytest.approx(float((batch.labels != IGNORE).float().mean())) == pytest.approx(0.6)


def test_best_fit_keeps_documents_whole() -> None:
    sizes = [3 + index % 30 for index in range(300)]
    shard = marked(sizes)
    batches = TrainBatches(alone(shard), 4, 32, 0, "best_fit")
    seen: Counter[int] = Counter()
    for _ in range(30):
        for stretch in stretches(next(batches)):
            document = int(np.searchsorted(shard.offsets, stretch[0] - 1, side="right")) - 1
            assert len(stretch) == sizes[document]
            seen[document] += 1
    assert len(seen) > 200 and max(seen.values()) == 1


def test_a_file_that_shrinks_is_no_crash(tmp_path: Path) -> None:
    shard = tokens_on_disk(tmp_path, 4000)
    batches = TrainBatches(alone(shard), 2, 64, 0)
    next(batches)
    os.truncate(tmp_path / "train.bin", 10)
    with pytest.raises(UserError, match=r"train\.bin: was cut short while it was in use; .* --resume"):
        for _ in range(100):
            next(batches)


def test_a_file_that_is_removed_stays_open(tmp_path: Path) -> None:
    shard = tokens_on_disk(tmp_path, 4000)
    whole = TrainBatches(alone(shard_of([4000])), 2, 64, 0)
    batches = TrainBatches(alone(shard), 2, 64, 0)
    (tmp_path / "train.bin").unlink()
    for _ in range(40):
        assert torch.equal(next(batches).input_ids, next(whole).input_ids)


def test_long_documents_give_full_rows() -> None:
    shard = marked([1000])
    batches = TrainBatches(alone(shard), 1, 11, seed=0)
    rows = [stretches(next(batches)) for _ in range(99)]
    full = [row[0] for row in rows if len(row) == 1]
    assert len(full) >= 98 and all(len(stretch) == 11 for stretch in full)
    begins = [stretch[0] for stretch in full]
    assert begins != sorted(begins)  # not one after the other, as they stand in the document


def test_epochs_differ() -> None:
    shard = marked([105] * 6)
    batches = TrainBatches(alone(shard), 6 * 10, 11, seed=0)  # the full rows of an epoch
    first, second = (
        [row[0] for row in next(batches).input_ids.tolist() if row == list(range(row[0], row[0] + 11))]
        for _ in range(2)
    )
    assert first != second  # another order
    assert set(first) != set(second)  # and other cuts
    again = next(TrainBatches(alone(shard), 6 * 10, 11, seed=0))
    other = next(TrainBatches(alone(shard), 6 * 10, 11, seed=1))
    assert torch.equal(again.input_ids, next(TrainBatches(alone(shard), 6 * 10, 11, seed=0)).input_ids)
    assert not torch.equal(again.input_ids, other.input_ids)


def test_long_and_short_documents_are_mixed() -> None:
    shard = marked([501] * 10 + [6] * 500)  # as many targets in long documents as in half of the short ones
    batches = TrainBatches(alone(shard), 10, 51, seed=0)
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


def tokens_on_disk(folder: Path, *sizes: int) -> Shard:
    """Like ``shard_of``, in files."""
    plain = shard_of(list(sizes))
    plain.tokens.astype(np.uint16).tofile(folder / "train.bin")
    plain.offsets.tofile(folder / "train.offsets.bin")
    meta = {"dtype": "uint16", "tokens": plain.num_tokens, "documents": len(sizes), "bytes": plain.num_bytes}
    return open_shard(folder, "train", meta, "f")


def test_memory_mapped_shards(tmp_path: Path) -> None:
    plain, mapped = shard_of([30, 20, 7]), tokens_on_disk(tmp_path, 30, 20, 7)
    one, other = next(TrainBatches(alone(plain), 2, 8, 0)), next(TrainBatches(alone(mapped), 2, 8, 0))
    assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.cu_seqlens, other.cu_seqlens)


def test_refusals() -> None:
    shard = shard_of([5])
    with pytest.raises(UserError, match=r"training text holds 5 tokens, fewer than one row of 6; give more text"):
        TrainBatches(alone(shard), 1, 6, 0)
    assert next(TrainBatches(alone(shard), 1, 5, -1)).input_ids.tolist() == [[0, 2, 3, 4, 0]]
    for make in (lambda b, t: TrainBatches(alone(shard), b, t, 0), lambda b, t: validation_batches(shard, b, t)):
        with pytest.raises(UserError, match="batch_size: 0"):
            make(0, 4)
        with pytest.raises(UserError, match=r"sequence_length: 1"):
            make(1, 1)
    for make in (
        lambda b, w: TrainBatches(alone(shard), b, 4, 0, world=w),
        lambda b, w: validation_batches(shard, b, 4, world=w),
    ):
        with pytest.raises(UserError, match=r"^batch_size: 6 rows .* by 4 processes; run 1, 2, 3 or 6 of them, or "):
            make(6, 4)
        with pytest.raises(UserError, match=r"^batch_size: 1 rows .* by 8 processes; run 1 of them, or .* of 8$"):
            make(1, 8)
    with pytest.raises(UserError, match=r"packing: 'bestfit' is not split or best_fit; did you mean 'best_fit'\?"):
        TrainBatches(alone(shard), 1, 4, 0, "bestfit")
    with pytest.raises(UserError, match=r"the training text of 'b' holds 4 tokens, fewer than one row of 5"):
        TrainBatches(Mixture({"a": shard, "b": shard_of([4])}), 1, 5, 0)
    nothing = Shard(np.zeros(1, np.uint16), np.array([0, 1]), 0, "f")
    with pytest.raises(UserError, match="validation text holds 1 tokens, and nothing to predict"):
        validation_batches(nothing, 1, 8)
