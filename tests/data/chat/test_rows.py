"""Rows of a step: every example once an epoch, whole, the same ones on any number of processes and after a stop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data.chat.rows import ExampleBatches, rows_of, split_held_out
from gossamer.data.chat.samples import Example, Sample
from gossamer.errors import UserError


def example(number: int, *lengths: int, key: str = "") -> Example:
    def sample(side: int, length: int) -> Sample:
        ids = np.full(length, 10 * number + side, np.int32)
        return Sample(ids, np.where(np.arange(length) < 1, -100, ids).astype(np.int32))

    samples = tuple(sample(side, length) for side, length in enumerate(lengths))
    return Example(samples, f"F:{number}", key or f"{number:04x}")


lengths = st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=2), min_size=1, max_size=20)


@given(lengths, st.integers(2, 40))
def test_rows_hold_whole_examples_and_no_padding(sizes, row_tokens):
    examples = [example(index, *size) for index, size in enumerate(sizes)]
    rows = rows_of(examples, range(len(examples)), row_tokens)
    seen = []
    for row in rows:
        starts = row.cu_seqlens.tolist()
        assert row.input_ids.shape == row.labels.shape == (1, starts[-1]) and starts[0] == 0
        assert starts[-1] <= row_tokens or len(set(row.examples)) == 1
        for place, (index, side) in enumerate(zip(row.examples, row.sides, strict=True)):
            sample = examples[index].samples[side]
            document = slice(starts[place], starts[place + 1])
            assert row.input_ids[0, document].tolist() == sample.input_ids.tolist()
            assert row.labels[0, document].tolist() == sample.labels.tolist()
            seen.append((index, side))
        assert all(row.examples.count(index) == len(examples[index].samples) for index in row.examples)
    assert sorted(seen) == [(index, side) for index, size in enumerate(sizes) for side in range(len(size))]


def drawn(batches: ExampleBatches, steps: int | None = None) -> list[list[int]]:
    """The examples of each step."""
    found = []
    for rows in batches:
        found.append(sorted({index for row in rows for index in row.examples}))
        if len(found) == steps:
            break
    return found


EXAMPLES = [example(index, 2 + index % 7) for index in range(11)]


def test_an_epoch_has_every_example_once_in_an_order_of_its_own():
    steps = drawn(ExampleBatches(EXAMPLES, 1, 16, seed=3, epochs=2))
    order = [step[0] for step in steps]
    assert sorted(order[:11]) == sorted(order[11:]) == list(range(11)) and order[:11] != order[11:]
    assert drawn(ExampleBatches(EXAMPLES, 1, 64, seed=3, epochs=2)) == steps  # whatever the rows are
    assert drawn(ExampleBatches(EXAMPLES, 1, 16, seed=4, epochs=2)) != steps
    batches = ExampleBatches(EXAMPLES, 4, 16, seed=3, indices=(1, 3, 5, 7, 9), epochs=2)
    assert batches.num_steps == 3
    assert [index for step in drawn(batches) for index in step].count(3) == 2 and batches.epoch == 2


@given(st.integers(1, 5), st.integers(1, 12), st.integers(4, 40), st.integers(0, 5))
def test_processes_share_a_step(world_size, batch_size, row_tokens, steps):
    alone = drawn(ExampleBatches(EXAMPLES, batch_size, row_tokens, 0), steps + 1)
    ranks = [
        ExampleBatches(EXAMPLES, batch_size, row_tokens, 0, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in range(steps + 1):
        shares = [next(batches) for batches in ranks]
        assert len({len(rows) for rows in shares}) == 1
        indices = [index for rows in shares for row in rows for index in row.examples]
        assert sorted(set(indices)) == alone[step]
        loads = [sum(row.input_ids.numel() for row in rows if row.examples) for rows in shares]
        assert max(loads) - min(loads) <= max(len(one) for one in EXAMPLES)
        assert all((row.labels == -100).all() for rows in shares for row in rows if not row.examples)


def test_a_run_goes_on_where_it_stopped():
    whole = drawn(ExampleBatches(EXAMPLES, 4, 16, 1), 9)
    first = ExampleBatches(EXAMPLES, 4, 16, 1)
    drawn(first, 4)
    second = ExampleBatches(EXAMPLES, 4, 32, 1)
    second.load_state_dict(first.state_dict())
    assert drawn(second, 5) == whole[4:]
    with pytest.raises(UserError, match="not those that the checkpoint was trained on"):
        ExampleBatches(EXAMPLES[:-1], 4, 16, 1).load_state_dict(first.state_dict())
    with pytest.raises(UserError, match="seed: the checkpoint was trained with 1, not 2"):
        ExampleBatches(EXAMPLES, 4, 16, 2).load_state_dict(first.state_dict())


@given(st.lists(st.sampled_from("abcdefghij"), max_size=60), st.sampled_from([0, 0.05, 0.3]), st.integers(1, 20))
def test_examples_with_one_beginning_are_held_out_together(keys, fraction, max_examples):
    examples = [example(index, 2, key=key) for index, key in enumerate(keys)]
    train, held_out = split_held_out(examples, fraction, max_examples)
    assert sorted(train + held_out) == list(range(len(examples)))
    assert not {keys[index] for index in train} & {keys[index] for index in held_out}
    assert bool(held_out) == (fraction > 0 and len(set(keys)) > 1)
    if held_out:
        smallest = min(keys.count(key) for key in keys)
        assert len(held_out) <= max(smallest, min(max_examples, max(1, round(fraction * len(keys)))))
