"""The law behind the predictions for a budget."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.cost import scaling
from gossamer.cost.scaling import Law, Text

LAW = Law(E=0.7, A=0.2, alpha=0.3, B=0.8, beta=0.25, gamma=1.5, R=15.4, c0=2.0)
SIZES, LENGTHS = st.floats(1e5, 1e10), st.floats(1e4, 1e13)


@given(SIZES, LENGTHS, st.floats(1.01, 100))
def test_more_of_anything_is_better(size, length, more):
    text = Text(1e6, 2.2)
    here = LAW.bits_per_byte(size, length, text)
    assert LAW.bits_per_byte(size * more, length, text) <= here
    assert LAW.bits_per_byte(size, length * more, text) <= here
    assert LAW.bits_per_byte(size * more, length * more, Text(1e6 * more, 2.2)) < here


def test_harder_text_costs_in_its_power():
    easy, hard = (LAW.bits_per_byte(1e6, 1e6, Text(1e9, bits)) for bits in (2.0, 4.0))
    assert hard / easy == pytest.approx(2**1.5)
    assert easy == pytest.approx(0.7 + (0.2**4 + 0.8**4) ** 0.25)


def test_what_there_is_less_of_decides():
    text = Text(1e15, 2.0)
    assert LAW.bits_per_byte(1e6, 1e15, text) == pytest.approx(0.7 + 0.2, rel=1e-3)
    assert LAW.bits_per_byte(1e15, 1e6, text) == pytest.approx(0.7 + 0.8, rel=1e-3)


def test_text_read_again_is_worth_less_each_time():
    worth = [LAW.worth(times * 1e6, 1e6) for times in (0.5, 1, 2, 4, 100, 1e9)]
    assert worth[:2] == [0.5e6, 1e6]
    assert all(later > earlier for earlier, later in pairwise(worth))
    assert 1.9e6 < worth[2] < 2e6
    assert worth[-1] == pytest.approx(1e6 * (1 + LAW.R))


FITTED = replace(LAW, error=0.01, other_text=0.2, speed_error=0.5, trunk_parameters=(1e5, 1e7), bytes=(1e5, 1e7))


def test_the_band_grows_with_what_is_not_known():
    """A text that was not fitted, an unsteady clock, and sizes and lengths beyond the runs."""
    text, other = Text(1e9, 2.0), Text(1e9, 2.5)
    assert FITTED.band(1e6, 1e6, text, by_clock=False) == pytest.approx(0.01)
    assert FITTED.band(1e6, 1e6, other, by_clock=False) == pytest.approx(0.2)
    slower = FITTED.bits_per_byte(1e6, 1e6 / 1.5, text) / FITTED.bits_per_byte(1e6, 1e6, text) - 1
    assert FITTED.band(1e6, 1e6, text, by_clock=True) == pytest.approx((0.01**2 + slower**2) ** 0.5)


@given(SIZES, LENGTHS, st.floats(1.1, 100), st.sampled_from([2.0, 2.5]), st.booleans())
def test_further_beyond_the_runs_the_band_is_wider(size, length, further, bits, by_clock):
    text = Text(1e14, bits)
    here = FITTED.band(size, length, text, by_clock)
    assert here >= (0.01 if bits == 2.0 else 0.2)
    if size >= 1e7 and length >= 1e7:
        assert FITTED.band(size * further, length * further, text, by_clock=False) > FITTED.band(
            size, length, text, by_clock=False
        )


def test_the_law_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "_FILE", tmp_path / "law.json")
    found = Law(**vars(LAW) | {"texts": ("a", "b"), "bytes": (1.0, 2.0), "trunk_parameters": (3.0, 4.0)})
    scaling.write_law(found)
    scaling.law.cache_clear()
    assert scaling.law() == found
    scaling.law.cache_clear()
    assert found.covers(3.5, 1.5) and not found.covers(3.5, 2.5) and not found.covers(2.5, 1.5)


def test_the_law_that_is_shipped_was_fitted_to_enough():
    found = scaling.law()
    assert found.runs >= 12
    assert 0 < found.error < 0.05 < found.other_text < 1 and 0 < found.speed_error < 2
    assert min(found.E, found.A, found.alpha, found.B, found.beta, found.gamma, found.R) > 0
