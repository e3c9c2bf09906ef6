"""Plans: what fits and is fastest, what it takes, and what is said where nothing fits."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import pytest

from gossamer.cost.network import Network
from gossamer.errors import UserError
from gossamer.plan import Catalogue, ClusterPlan, FittedEfficiency, Job, make_plan
from gossamer.plan.search import fitting_layouts, min_chips, usable_memory
from gossamer.plan.timing import StepTimer

JOB = Job(length=4096, batch=2**24, mtp_steps=1)


@pytest.fixture(scope="module")
def plan(catalogue: Catalogue, shares: FittedEfficiency, released: Network) -> ClusterPlan:
    return make_plan(released, catalogue.chip("h20"), 2048, JOB, 15e12, shares, price=0.8, price_error=0.1)


def test_the_five_fastest_that_fit(plan: ClusterPlan) -> None:
    assert len(plan.layouts) == 5
    speeds = [plan.tokens_per_second(fitting) for fitting in plan.layouts]
    assert speeds == sorted(speeds, reverse=True)
    assert all(fitting.memory.total <= usable_memory(plan.chip) for fitting in plan.layouts)
    assert all(fitting.layout.chips == 2048 for fitting in plan.layouts)


def test_what_the_run_takes(plan: ClusterPlan) -> None:
    seconds = 15e12 / plan.tokens_per_second()
    assert plan.days * 86400 * plan.availability == pytest.approx(seconds)
    assert plan.device_hours == pytest.approx(plan.days * 24 * 2048)
    assert plan.dollars == pytest.approx(0.8 * plan.device_hours)
    assert plan.kilowatt_hours == pytest.approx(0.4 * plan.device_hours)
    flops = sum(plan.flops.values()) * plan.tokens_per_second()
    assert plan.mfu() == pytest.approx(flops / 2048 / plan.chip.flops.value)
    assert 0.05 < plan.mfu_by_parameters < plan.mfu() < 0.8


def test_worse_grades_and_prices_widen_the_range(
    catalogue: Catalogue, shares: FittedEfficiency, released: Network, plan: ClusterPlan
) -> None:
    low, high = plan.uncertainty_range(plan.days)
    assert low * high == pytest.approx(plan.days**2) and high / plan.days > 1 + 0.9 * shares.linear_attention_error
    certain = replace(plan.chip, **{name: replace(getattr(plan.chip, name), grade="vendor") for name in
                                    ("flops", "bandwidth", "link", "network")})  # fmt: skip
    assert make_plan(released, certain, 2048, JOB, 15e12, shares).time_error < plan.time_error
    assert plan.uncertainty_range(1.0, 0.5)[1] > plan.uncertainty_range(1.0)[1]


def test_json_is_whole(plan: ClusterPlan) -> None:
    found = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert found["days_range"][0] < found["days"] < found["days_range"][1]
    for layout in found["layouts"]:
        assert sum(layout["parts"].values()) == pytest.approx(layout["step_seconds"])


def test_what_does_not_fit_says_how_many_would(
    catalogue: Catalogue, shares: FittedEfficiency, released: Network
) -> None:
    chip = catalogue.chip("h20")
    with pytest.raises(UserError, match="does not fit 4 × NVIDIA H20 in any layout; the fewest chips") as error:
        make_plan(released, chip, 4, JOB, 15e12, shares)
    [fewest] = map(int, re.findall(r"fits on are (\d+)", str(error.value)))
    timer = StepTimer(released, chip, shares.rates, JOB)
    assert fitting_layouts(timer, fewest, 1) and not fitting_layouts(timer, fewest - 1, 1)


def test_more_copies_than_rows(catalogue: Catalogue, shares: FittedEfficiency, released: Network) -> None:
    with pytest.raises(UserError, match=r"^9,973 × NVIDIA H20 cannot share a step of 16,777,216 tokens.* on are \d+$"):
        make_plan(released, catalogue.chip("h20"), 9973, JOB, 15e12, shares)


def test_what_fits_on_no_number_of_chips(catalogue: Catalogue, shares: FittedEfficiency, released: Network) -> None:
    chip = catalogue.chip("h20")
    tiny = replace(chip, memory=replace(chip.memory, value=1e8))
    assert min_chips(released, tiny, JOB) is None
    with pytest.raises(UserError, match=r"^80b-a3b fits on no number of NVIDIA H20 with rows of 4,096 tokens$"):
        make_plan(released, tiny, 64, JOB, 15e12, shares)


def test_four_chips_in_under_five_seconds(catalogue: Catalogue, shares: FittedEfficiency, released: Network) -> None:
    start = time.process_time()
    for name in ("h20", "h200", "910c", "p800"):
        make_plan(released, catalogue.chip(name), 2048, JOB, 15e12, shares)
    assert time.process_time() - start < 5
