"""The fit's tables are those of the document, and its shares those on disk."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import planner_fit
import pytest

from gossamer.plan import load_catalogue, load_fitted_efficiency
from gossamer.plan.published_runs import FIT, HELD_OUT, load_published_runs, planner_error, predictions


@pytest.fixture(scope="module")
def found():
    return predictions(load_catalogue(), load_fitted_efficiency().rates)


def test_the_documents_tables_are_what_the_planner_says(found) -> None:
    texts = [path.read_text(encoding="utf-8") for path in planner_fit.DOCUMENTS]
    plans = planner_fit.compared()
    assert [planner_fit.document(text, found, plans) for text in texts] == texts
    for table in ("comparison", "validation"):
        assert sum(f"<!-- {table}: " in text for text in texts) == 1


def test_the_error_on_disk_is_that_of_the_runs_held_out(found) -> None:
    assert load_fitted_efficiency().error == pytest.approx(planner_error(found), abs=0.001)


def test_most_runs_held_out_are_within_a_quarter(found) -> None:
    errors = sorted(abs(check.error) for check in found if check.role == HELD_OUT)
    assert errors[-2] < 0.25 and errors[len(errors) // 2] < 0.15
    assert errors[-1] < 0.5


def test_roles_alternate_over_the_dense_runs_by_size() -> None:
    runs, _ = load_published_runs(load_catalogue())
    dense = [run for run in runs if not run.network.expert_parameters and run.role in (FIT, HELD_OUT)]
    assert [run.role for run in dense] == [FIT, HELD_OUT] * 4 + [FIT]
    sizes = [run.network.parameters for run in dense]
    assert all(small < 1.01 * large for small, large in pairwise(sizes))


@pytest.mark.slow
def test_the_fit_finds_the_shares_on_disk() -> None:
    runs, _ = load_published_runs(load_catalogue())
    assert asdict(planner_fit.fit([run for run in runs if run.role == FIT])) == pytest.approx(
        asdict(load_fitted_efficiency().rates), abs=0.002
    )
