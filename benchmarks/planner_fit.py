"""Fit the planner's four shares to published training runs, and show what it then says of the others.

    python benchmarks/planner_fit.py            # print the table
    python benchmarks/planner_fit.py --write    # and write efficiency.yaml and the table in docs/planning.md

Only runs whose role in runs.yaml is `fit` are looked at. Each share's logarithm has a prior that it is drawn to where
the runs say little: what large products (770 of 989 TFLOP/s) and copies were measured to reach on an H200, less what a
program of many small kernels loses, and round figures for links and availability. Layouts are the planner's own, so
layouts and shares are found in turn until neither changes.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from gossamer.cost.planner.catalogue import load_catalogue
from gossamer.cost.planner.efficiency import FITTED, Efficiency
from gossamer.cost.planner.layout import Layout
from gossamer.cost.planner.validation import FIT, Run, checks, published, spread, table

PRIOR = Efficiency(products=0.75, memory=0.5, links=0.6, availability=0.9)
# How far a share may be from its prior, as a standard deviation of its logarithm; and how far a run from the planner.
PRIOR_WIDTH = {"products": 0.1, "memory": 0.4, "links": 0.3, "availability": 0.05}
RUN_WIDTH = 0.15
DOCUMENT = Path(__file__).parents[1] / "docs" / "planning.md"
BEGIN, END = "<!-- validation: benchmarks/planner_fit.py --write -->", "<!-- end of validation -->"
NAMES = [item.name for item in fields(Efficiency)]


def residuals(shares: np.ndarray, runs: list[Run], placed: list[Layout]) -> np.ndarray:
    """What a perfect fit would make zero: errors of the runs and distances from the priors, in their widths."""
    rates = Efficiency(*np.exp(shares))
    errors = [
        math.log(run.predict(rates, layout) / run.measured) / RUN_WIDTH
        for run, layout in zip(runs, placed, strict=True)
    ]
    drawn = [math.log(getattr(rates, name) / getattr(PRIOR, name)) / PRIOR_WIDTH[name] for name in NAMES]
    return np.array(errors + drawn)


def step(shares: np.ndarray, runs: list[Run], placed: list[Layout]) -> np.ndarray:
    """One step of Gauss and Newton, with differences for derivatives; no share leaves 2% to 98%."""
    here, small = residuals(shares, runs, placed), 1e-4
    slopes = [(residuals(shares + small * axis, runs, placed) - here) / small for axis in np.eye(len(shares))]
    change = np.linalg.lstsq(np.array(slopes).T, -here, rcond=None)[0]
    return np.clip(shares + np.clip(change, -0.3, 0.3), math.log(0.02), math.log(0.98))


def fit(runs: list[Run]) -> Efficiency:
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


def write(rates: Efficiency, error: float, shown: str) -> None:
    lines = [
        "# Written by benchmarks/planner_fit.py --write: shares of a chip's figures, fitted to the runs of runs.yaml whose",
        "# role is `fit`; and the root mean square of the logarithmic errors of those held out.",
        *(f"{name}: {value}" for name, value in asdict(rates).items()),
        f"error: {error:.3f}",
    ]
    FITTED.write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    DOCUMENT.write_text(f"{head}{BEGIN}\n{shown}\n{END}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="write efficiency.yaml and docs/planning.md")
    parser.add_argument("--fitted-alone", action="store_true", help="show the fitted runs alone, before a last look")
    arguments = parser.parse_args()
    catalogue = load_catalogue()
    rates = fit([run for run in published(catalogue)[0] if run.role == FIT])
    found = checks(catalogue, rates)
    print(rates)
    if arguments.fitted_alone:
        for check in found:
            if check.role == FIT:
                print(f"{check.name:<16} {check.measured:10,.0f} {check.predicted:10,.0f} {100 * check.error:+4.0f}%")
                print(f"{'':<16} {check.layout}")
        return
    print(table(found))
    print(f"error: {spread(found):.3f}")
    if arguments.write:
        write(rates, spread(found), table(found))


if __name__ == "__main__":
    main()
