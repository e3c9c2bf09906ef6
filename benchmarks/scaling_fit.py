"""Fits the law behind --budget to the runs of scaling.py, and says how far it is from runs that it has not seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import t as student

from gossamer.cost.scaling import Law, Text, write_law

Run = dict[str, Any]

NOISE = 0.01  # noise of a loss's logarithm, from seed to seed and from machine to machine
TEXT_NOISE = 0.15  # the same on a text that few runs read, whose difficulty a compressor measures badly
# What is known beforehand, as value and spread. A and alpha: what arXiv 2001.08361 gives for networks of a million to a
# hundred million parameters, above E, with as much data as they can use; runs of a minute say little of either. beta:
# arXiv 2203.15556; R: arXiv 2305.16264; E: what large models need for a byte of English; gamma: texts are alike.
PRIOR = {
    "E": (math.log(0.7), 0.3),
    "A": (math.log(0.5), 0.5),
    "alpha": (0.25, 0.08),
    "B": (math.log(1.0), 2.0),
    "beta": (0.28, 0.15),
    "gamma": (0.0, 0.2),
    "R": (math.log(15.4), 0.5),
}
_LOGARITHMS = ("E", "A", "B", "R")


def fit(runs: Sequence[Run], c0: float) -> Law:
    """Fit the law by least squares of the losses' logarithms and of what was known before.

    Single runs that lie far off count less.
    """
    means, spreads = (np.array(column) for column in zip(*PRIOR.values(), strict=True))

    noise = np.array([NOISE if run["compressed_bits"] == c0 else TEXT_NOISE for run in runs])

    def law(values: np.ndarray) -> Law:
        named = dict(zip(PRIOR, values.tolist(), strict=True))
        return Law(**{name: math.exp(value) if name in _LOGARITHMS else value for name, value in named.items()}, c0=c0)

    def residuals(values: np.ndarray) -> np.ndarray:
        errors = np.array([_error(law(values), run) for run in runs]) / noise
        # Huber's loss, beyond twice the noise, on the runs alone.
        shrunk = np.where(abs(errors) <= 2, errors, np.sign(errors) * np.sqrt(np.maximum(4 * abs(errors) - 4, 0)))
        return np.concatenate([shrunk, (values - means) / spreads])

    lowest = [0.02 if name in ("alpha", "beta") else -np.inf for name in PRIOR]
    return law(least_squares(residuals, means, x_scale=spreads, bounds=(lowest, np.inf)).x)


def _error(law: Law, run: Run) -> float:
    """The logarithm of the predicted over the measured loss."""
    text = Text(run["unique_bytes"], run["compressed_bits"])
    predicted = law.bits_per_byte(run["trunk_parameters"], run["bytes"], text)
    return math.log(predicted / run["bits_per_byte"])


def within(errors: Sequence[float]) -> float:
    """Return what nine of ten further errors of this kind stay within, about zero, if they are normally distributed.

    Few errors say little of how large others can be: Student's distribution allows for that.
    """
    if not errors:
        return math.nan
    spread = math.sqrt(statistics.fmean(error**2 for error in errors))
    return float(spread * student.ppf(0.95, len(errors)) * math.sqrt(1 + 1 / len(errors)))


def fit_and_write(runs: list[Run], budgets: Sequence[Run] = ()) -> None:
    """Fit the law to the runs and write it, with the errors for runs, texts and speeds that it has not seen.

    Args:
        runs: the runs of scaling.py
        budgets: runs by a budget of time, as budget_band.py records them; those on texts that the other runs do not
            know say how far off the law is there
    """
    if len(runs) < len(PRIOR):
        raise SystemExit(f"{len(runs)} runs by the recipe as it is, too few for {len(PRIOR)} constants")
    names = [f"{run['corpus']} ({run['tokenizer']})" for run in runs]
    commonest = statistics.mode(run["corpus"] for run in runs)
    c0 = next(run["compressed_bits"] for run in runs if run["corpus"] == commonest)
    found = fit(runs, c0)
    unseen = [_error(fit(runs[:i] + runs[i + 1 :], c0), run) for i, run in enumerate(runs)]
    own = [error for run, error in zip(runs, unseen, strict=True) if run["corpus"] == commonest]
    others = []  # one for each text, for runs on the same text miss in the same direction
    for corpus in sorted({run["corpus"] for run in runs} - {commonest}):
        without = fit([run for run in runs if run["corpus"] != corpus], c0)
        others.append(statistics.fmean(_error(without, run) for run in runs if run["corpus"] == corpus))
        print(f"{corpus}: {others[-1]:+.1%} by a fit without it")
    for text in sorted({run["text"] for run in budgets} - {run["corpus"] for run in runs}):
        others.append(statistics.fmean(_error(found, run) for run in budgets if run["text"] == text))
        print(f"{text}: {others[-1]:+.1%} by this fit, which does not include it")
    for name, run, error in zip(names, runs, unseen, strict=True):
        print(
            f"{name:20} width {run['width']:4} {run['bytes'] / 1e6:6.2f} MB  measured {run['bits_per_byte']:.4f}  "
            f"fitted {run['bits_per_byte'] * math.exp(_error(found, run)):.4f}  left out {error:+.2%}"
        )
    speeds = [math.log(run["tokens"] / run["predicted_tokens"]) for run in budgets]
    sizes, lengths = ([run[key] for run in runs] for key in ("trunk_parameters", "bytes"))
    found = replace(
        found,
        trunk_parameters=(min(sizes), max(sizes)),
        bytes=(min(lengths), max(lengths)),
        error=within(own),
        other_text=within(others),
        speed_error=math.expm1(within(speeds)) if speeds else 0.0,
        runs=len(runs),
        texts=tuple(sorted(set(names))),
        recipe=runs[0]["recipe"],
    )
    print(found)
    print(f"wrote {write_law(found)}")
