"""The learning rate's shape over a run."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.train.config import ScheduleConfig
from gossamer.train.schedule import learning_rate_factor


def test_warm_up_plateau_decay():
    config = ScheduleConfig(warmup_steps=10, decay_fraction=0.5, final_fraction=0.1)
    factors = [learning_rate_factor(step, 100, config) for step in range(1, 101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:50] == pytest.approx([1.0] * 41)
    assert factors[75] == pytest.approx(0.1 + 0.9 * 25 / 51)
    assert 0.1 < factors[99] < 0.12


@given(st.integers(1, 300), st.integers(0, 50), st.floats(0, 1), st.floats(0, 1))
def test_the_factor_never_leaves_its_range_and_falls_after_the_warm_up(steps, warmup, decay, final):
    config = ScheduleConfig(warmup, decay, final)
    factors = [learning_rate_factor(step, steps, config) for step in range(1, steps + 1)]
    assert all(0 < factor <= 1 for factor in factors)
    after = factors[warmup:]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(after))
