"""The fit's tables are those of the document, and its shares those on disk."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import pairwise

import planner_fit
import pytest

from gossamer.plan import load_catalogue, load_fitted_efficiency
from gossamer.plan.published_runs import FIT, HELD_OUT, held_out, load_published_runs, planner_error, predictions


@pytest.fixture(scope="module")
def found():
    return predictions(load_catalogue(), load_fitted_efficiency().rates)


def test_the_documents_tables_are_what_the_planner_says(found) -> None:
    texts = [path.read_text(encoding="utf-8") for path in planner_fit.DOCUMENTS]
    plans = planner_fit.compared()
    assert [planner_fit.document(text, found, plans) for text in texts] == texts
    for table in ("comparison", "validation", "refit"):
        assert sum(f"<!-- {table}: " in text for text in texts) == 1


def test_the_second_fit_is_beside_what_the_planner_says(found) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in planner_fit.DOCUMENTS)
    rows = [row.split(" | ")[:4] for row in planner_fit.refit_table(found, found).splitlines()[2:]]
    assert len(rows) == sum(check.role == HELD_OUT for check in found)
    assert all(" | ".join(row) in text for row in rows)
    assert sum(row[0].endswith("(fitted)") for row in rows) == len(planner_fit.PRETRAINED)


def test_the_errors_on_disk_are_those_of_the_runs_held_out(found) -> None:
    fitted = load_fitted_efficiency()
    assert fitted.error == pytest.approx(planner_error(held_out(found, has_linear_attention=False)), abs=0.001)
    linear = planner_error(held_out(found, has_linear_attention=True))
    assert fitted.linear_attention_error == pytest.approx(linear, abs=0.001)


def test_runs_held_out_are_within_a_quarter_without_linear_attention_and_a_factor_with_it(found) -> None:
    errors = sorted(abs(check.error) for check in held_out(found, has_linear_attention=False))
    assert errors[-1] < 0.25 and errors[len(errors) // 2] < 0.15
    factors = [abs(math.log1p(check.error)) for check in held_out(found, has_linear_attention=True)]
    assert len(errors) + len(factors) == sum(check.role == HELD_OUT for check in found)
    assert max(factors) < math.log(2.5)


def test_roles_alternate_over_the_dense_runs_by_size() -> None:
    runs, _ = load_published_runs(load_catalogue())
    dense = [
        run
        for run in runs
        if run.role in (FIT, HELD_OUT) and not (run.network.expert_parameters or run.network.has_linear_attention)
    ]
    assert [run.role for run in dense] == [FIT, HELD_OUT] * 4 + [FIT]
    sizes = [run.network.parameters for run in dense]
    assert all(small < 1.01 * large for small, large in pairwise(sizes))


@pytest.mark.slow
def test_the_fit_finds_the_shares_on_disk() -> None:
    runs, _ = load_published_runs(load_catalogue())
    assert asdict(planner_fit.fit([run for run in runs if run.role == FIT])) == pytest.approx(
        asdict(load_fitted_efficiency().rates), abs=0.002
    )
