"""What a user may write for a budget, and what is said of the rest."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.cost.budget import MIN_SECONDS, parse_budget
from gossamer.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1.5 hours", 5400), ("2d", 172_800), ("1e3s", 1000)],
)
def test_a_time_is_read_in_seconds_of_the_clock(text, seconds):
    budget = parse_budget(text)
    assert (budget.kind, budget.amount) == ("time", seconds)
    assert budget.seconds(None, 8) == seconds, "the clock runs for all devices alike"


@pytest.mark.parametrize(("text", "flops"), [("1e17flop", 1e17), ("3pflop", 3e15), ("2.5 TFLOPS", 2.5e12)])
def test_flops_are_read_with_their_prefixes(text, flops):
    budget = parse_budget(text)
    assert (budget.kind, budget.amount) == ("flops", pytest.approx(flops))
    assert budget.seconds(2.0, 1) is None


def test_money_buys_device_hours_at_its_price():
    budget = parse_budget("5usd", price=2.5)
    assert budget.seconds(2.5, 1) == 7200
    assert budget.seconds(2.5, 4) == 1800
    assert parse_budget("5EUR", price=2.5, currency="EUR").kind == "money"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no amount with a unit"),
        ("10", "no amount with a unit"),
        ("m", "no amount with a unit"),
        ("-5m", "no amount with a unit"),
        ("10m 4", "no amount with a unit"),
        ("10 minuts", "did you mean 'minute'"),
        ("10m3usd", "only times add up"),
        ("5eur", "money is in USD here"),
        ("0m", "above 0"),
        ("1e999s", "above 0"),
        ("5s", "the least is 20s"),
        ("1e3flop", "the least is 2e+11flop"),
        ("0.01usd", "the least is 0.014usd at 2.5 USD per hour"),
    ],
)
def test_mistakes_get_one_line_that_names_the_budget(text, said):
    with pytest.raises(UserError) as caught:
        parse_budget(text, price=2.5)
    assert said in str(caught.value)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_money_without_a_price_asks_for_it():
    with pytest.raises(UserError, match="--price"):
        parse_budget("5usd")


@given(st.floats(0.01, 1e4))
def test_the_least_that_is_named_is_enough(price):
    with pytest.raises(UserError) as caught:
        parse_budget("1e-9usd", price=price)
    least = str(caught.value).split("the least is ")[1].split()[0]
    assert parse_budget(least, price=price).seconds(price, 1) >= MIN_SECONDS * (1 - 1e-6)


@given(st.floats(MIN_SECONDS, 1e9))
def test_a_written_number_of_seconds_is_read_back(seconds):
    assert math.isclose(parse_budget(f"{seconds!r}s").amount, seconds)
