"""Fit the planner's four shares to published training runs, and show what it then says of the others.

    python benchmarks/planner_fit.py            # print the table
    python benchmarks/planner_fit.py --write    # and write efficiency.yaml, the documents' tables and picture

Only runs whose role in published_runs.yaml is `fit` are used. The logarithm of each share has a prior that it is drawn
to where the runs say little: what large products (770 of 989 TFLOP/s) and copies were measured to reach on an H200,
less what a program of many small kernels loses, and round figures for links and availability. Layouts are the planner's
own, so layouts and shares are found in turn until neither changes.

A second fit has the runs of PRETRAINED as well. It shows what the shares would gain from them, and is not used.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from gossamer.cost.layout import Layout
from gossamer.plan import ClusterPlan, Job
from gossamer.plan.arguments import choose_chips, planned_network, training_plans
from gossamer.plan.catalogue import load_catalogue
from gossamer.plan.describe import draw_plans
from gossamer.plan.efficiency import EFFICIENCY_FILE, Efficiency, FittedEfficiency, load_fitted_efficiency
from gossamer.plan.published_runs import (
    FIT,
    HELD_OUT,
    Prediction,
    PublishedRun,
    held_out,
    load_published_runs,
    planner_error,
    predictions,
    predictions_table,
)
from gossamer.units import days, dollars, energy, percent

PRIOR = Efficiency(products=0.75, memory=0.5, links=0.6, availability=0.9)
# Standard deviations of logarithms: of a share from its prior, and of a run from what the planner says.
PRIOR_WIDTH = {"products": 0.1, "memory": 0.4, "links": 0.3, "availability": 0.05}
RUN_WIDTH = 0.15
DOCUMENTS = [Path(__file__).parents[1] / "docs" / name for name in ("planning.md", "lab/planning.md")]
CHIPS = ("h20", "h200", "ppu-810e", "910c", "p800")
NAMES = [item.name for item in fields(Efficiency)]
PRETRAINED = ("qwen3.6-35b-a3b", "qwen3.8-27b")  # pretraining with linear attention, which the second fit has as well


def residuals(shares: np.ndarray, runs: list[PublishedRun], placed: list[Layout]) -> np.ndarray:
    """Return what a perfect fit would make zero: errors of the runs and distances from the priors, in their widths."""
    rates = Efficiency(*np.exp(shares))
    errors = [
        math.log(run.predict(rates, layout) / run.measured) / RUN_WIDTH
        for run, layout in zip(runs, placed, strict=True)
    ]
    drawn = [math.log(getattr(rates, name) / getattr(PRIOR, name)) / PRIOR_WIDTH[name] for name in NAMES]
    return np.array(errors + drawn)


def step(shares: np.ndarray, runs: list[PublishedRun], placed: list[Layout]) -> np.ndarray:
    """Return the shares after a Gauss-Newton step with finite differences; no share leaves 2% to 98%."""
    here, small = residuals(shares, runs, placed), 1e-4
    slopes = [(residuals(shares + small * axis, runs, placed) - here) / small for axis in np.eye(len(shares))]
    change = np.linalg.lstsq(np.array(slopes).T, -here, rcond=None)[0]
    return np.clip(shares + np.clip(change, -0.3, 0.3), math.log(0.02), math.log(0.98))


def fit(runs: list[PublishedRun]) -> Efficiency:
    """Return the shares that fit the runs best."""
    shares = np.log([getattr(PRIOR, name) for name in NAMES])
    seen: set[tuple[Layout, ...]] = set()
    best: tuple[float, np.ndarray] = (math.inf, shares)
    while True:
        placed = [run.layout(Efficiency(*np.exp(shares))) for run in runs]
        cost = float(np.sum(residuals(shares, runs, placed) ** 2))
        best = min(best, (cost, shares), key=lambda item: item[0])
        if tuple(placed) in seen:
            return Efficiency(*(round(float(share), 3) for share in np.exp(best[1])))
        seen.add(tuple(placed))
        for _ in range(20):
            shares = step(shares, runs, placed)


def write_shares(fitted: FittedEfficiency) -> None:
    """Write efficiency.yaml."""
    lines = [
        "# Written by benchmarks/planner_fit.py --write: shares of a chip's figures, fitted to those runs of",
        "# published_runs.yaml whose role is `fit`; and the root mean square of logarithmic errors of those held out.",
        *(f"{name}: {value}" for name, value in asdict(fitted.rates).items()),
        f"error: {fitted.error:.3f} # without linear attention",
        f"linear_attention_error: {fitted.linear_attention_error:.3f}",
    ]
    EFFICIENCY_FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def refit_table(found: list[Prediction], refit: list[Prediction]) -> str:
    """Return the table of the runs that are held out, by the shares as they are and by those of the second fit."""
    lines = ["| run | published | as it is | error | second fit | error |", "|---|--:|--:|--:|--:|--:|"]
    for old, new in zip(found, refit, strict=True):
        if old.role == HELD_OUT:
            digits = ",.0f" if old.measured > 1 else ".3f"
            name = f"{old.name} (fitted)" if old.name in PRETRAINED else old.name
            lines.append(
                f"| {name} | {old.measured:{digits}} | {old.predicted:{digits}} | {100 * old.error:+.0f}% "
                f"| {new.predicted:{digits}} | {100 * new.error:+.0f}% |"
            )
    return "\n".join(lines)


def compared() -> list[ClusterPlan]:
    """Return the plans that docs/planning.md compares, by the shares that are on disk."""
    job = Job(length=4096, batch=2**24, mtp_steps=1)
    return training_plans(planned_network("80b-a3b"), choose_chips(CHIPS), 2048, 15e12, job)


def section(text: str, name: str, content: str) -> str:
    """Return a document in which the text between two of its comments is replaced, if it has them."""
    begin, end = f"<!-- {name}: benchmarks/planner_fit.py --write -->", f"<!-- end of {name} -->"
    if begin not in text:
        return text
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def comparison(plans: list[ClusterPlan]) -> str:
    """Return the table that compares plans."""
    lines = [
        "| chip | days | range | tokens/s per chip | MFU | energy | money | figures | layout |",
        "|---|--:|--:|--:|--:|--:|--:|---|---|",
    ]
    for plan in plans:
        low, high = plan.uncertainty_range(plan.days)
        lines.append(
            f"| {plan.chip.name} | {days(plan.days)} | {days(low)} to {days(high)} "
            f"| {plan.tokens_per_second() / plan.count:,.0f} | {percent(plan.mfu())} "
            f"| {energy(plan.kilowatt_hours)} | {dollars(plan.dollars)} "
            f"| {plan.chip.worst_grade} | {plan.best.layout.describe()} |"
        )
    return "\n".join(lines)


def shares_line(rates: Efficiency) -> str:
    """Return the shares in a line."""
    return ", ".join(f"{name} {share}" for name, share in asdict(rates).items())


def document(text: str, found: list[Prediction], plans: list[ClusterPlan]) -> str:
    """Return a document with its tables of predictions and of plans made anew, as far as it holds them."""
    validation = f"Fitted shares: {shares_line(load_fitted_efficiency().rates)}.\n\n{predictions_table(found)}"
    return section(section(text, "validation", validation), "comparison", comparison(plans))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--write", action="store_true", help="write efficiency.yaml, docs/planning.md and docs/lab/planning.md"
    )
    arguments = parser.parse_args()
    catalogue = load_catalogue()
    runs, _ = load_published_runs(catalogue)
    rates = fit([run for run in runs if run.role == FIT])
    found = predictions(catalogue, rates)
    print(rates)
    print(predictions_table(found))
    second = fit([run for run in runs if run.role == FIT or run.name in PRETRAINED])
    refit = f"Shares of the second fit: {shares_line(second)}.\n\n{refit_table(found, predictions(catalogue, second))}"
    print(refit)
    errors = [planner_error(held_out(found, has_linear_attention)) for has_linear_attention in (False, True)]
    print("error without linear attention {:.3f}, with it {:.3f}".format(*errors))
    if arguments.write:
        write_shares(FittedEfficiency(rates, *errors))
        plans = compared()
        for path in DOCUMENTS:
            text = document(path.read_text(encoding="utf-8"), found, plans)
            path.write_text(section(text, "refit", refit), encoding="utf-8")
        DOCUMENTS[0].with_name("planning-chips.png").write_bytes(draw_plans(plans, "png"))


if __name__ == "__main__":
    main()
