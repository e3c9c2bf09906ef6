"""How much of a data sheet's figures a program reaches: four shares that are fitted, others that are taken.

The fitted ones are in efficiency.yaml, which `benchmarks/planner_fit.py` writes from published runs (runs.yaml).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from gossamer.plan.lined_yaml import read_lined

FITTED = Path(__file__).parent / "efficiency.yaml"

# Taken, not fitted: the runs say too little about each.
ATTENTION = 0.7  # fused attention reaches so much of what large products reach
DELTA_RULE = 0.3  # products of chunks of 64, in types wider than bfloat16 in part, one after another along the sequence
TILE = 128  # rows of a tile: an expert's rows are filled up to whole ones, half a tile in the mean
KERNEL_SECONDS = 4e-6  # what starting and draining a kernel costs, beside the time of its work
NEVER_HIDDEN = 0.1  # share of a collective that computation cannot hide, however long it is


@dataclass(frozen=True)
class Efficiency:
    """Shares of a chip's figures, 0 to 1.

    Attributes:
        products: of the peak, in large products
        memory: of the memory's bandwidth, in what is no product
        links: of the links' bandwidth, in collectives
        availability: of a run's device-hours that go into its steps; the rest are restarts, evaluations and waiting
    """

    products: float
    memory: float
    links: float
    availability: float


@dataclass(frozen=True)
class Fitted:
    """What efficiency.yaml holds.

    Attributes:
        rates: the shares
        error: root mean square of the logarithmic errors of the runs held out
    """

    rates: Efficiency
    error: float


def fitted() -> Fitted:
    """The shares that were fitted to published runs."""
    names = [item.name for item in fields(Efficiency)]
    values = {name: place.number(0.01, 1) for name, place in read_lined(FITTED).items(frozenset([*names, "error"]))}
    return Fitted(Efficiency(**{name: values[name] for name in names}), values["error"])
