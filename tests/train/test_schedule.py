"""The learning rate's shape over a run."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.train.config import ScheduleConfig
from gossamer.train.schedule import learning_rate_factor


def factors(config, steps):
    return [learning_rate_factor(step, (step - 1) / steps, config) for step in range(1, steps + 1)]


def test_warm_up_plateau_decay():
    found = factors(ScheduleConfig(warmup_steps=10, decay_fraction=0.5, final_fraction=0.1), 100)
    assert found[0] == pytest.approx(0.1)
    assert found[9:51] == pytest.approx([1.0] * 42)
    assert found[75] == pytest.approx(0.1 + 0.9 * 0.5)
    assert found[99] == pytest.approx(0.1 + 0.9 * 0.02)


def test_cosine_is_half_a_wave():
    found = factors(ScheduleConfig("cosine", final_fraction=0.2), 100)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.6)
    assert found[99] == pytest.approx(0.2, abs=1e-3)


@given(st.sampled_from(["wsd", "cosine"]), st.integers(1, 300), st.integers(0, 50), st.floats(0, 1), st.floats(0, 1))
def test_the_factor_stays_in_its_range_and_falls_after_the_warm_up(kind, steps, warmup, decay, final):
    found = factors(ScheduleConfig(kind, warmup, decay, final), steps)
    assert all(0 < factor <= 1 for factor in found)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(found[warmup:]))
