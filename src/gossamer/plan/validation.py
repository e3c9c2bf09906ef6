"""Published runs beside what the planner says of them; `benchmarks/planner_fit.py` fits to some of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gossamer.plan.catalogue import Catalogue, Chip
from gossamer.plan.efficiency import Efficiency
from gossamer.plan.families import workload_from
from gossamer.plan.layout import Layout
from gossamer.plan.search import options
from gossamer.plan.timing import Job, StepTimer, micro_batches
from gossamer.plan.workload import Workload
from gossamer.reading import read_text
from gossamer.yaml_files import parse_yaml

RUNS = Path(__file__).parent / "runs.yaml"
FIT, HELD_OUT, SHOWN = "fit", "held-out", "shown"


@dataclass(frozen=True)
class Run:
    """A run as it was published; see the head of runs.yaml.

    Attributes:
        measured: tokens a second and chip
        whole: `measured` is of all the run's hours, not of its steps alone
    """

    name: str
    role: str
    work: Workload
    chip: Chip
    count: int
    job: Job
    measured: float
    whole: bool
    source: str
    why: str
    published: Layout | None

    def timer(self, rates: Efficiency) -> StepTimer:
        return StepTimer(self.work, self.chip, rates, self.job)

    def layout(self, rates: Efficiency) -> Layout:
        """The published one; where there is none, the planner's own: the fastest that fits."""
        if self.published is not None:
            return self.published
        found = options(self.timer(rates), self.count, wanted=1)
        assert found, f"{self.name} does not fit its own {self.count} chips"
        return found[0].layout

    def predict(self, rates: Efficiency, layout: Layout | None = None) -> float:
        """Tokens a second and chip, of what `measured` is of."""
        layout = layout or self.layout(rates)
        tokens = micro_batches(layout, self.job) * layout.rows * layout.data * self.job.length
        speed = tokens / sum(self.timer(rates).parts(layout).values()) / self.count
        return speed * rates.availability if self.whole else speed


@dataclass(frozen=True)
class Ratio:
    """What one run costs, as a share of another's."""

    name: str
    role: str
    ours: Run
    other: Run
    tokens: tuple[float, float]
    measured: float
    source: str
    why: str

    def predict(self, rates: Efficiency) -> float:
        own, other = self.tokens
        return own / self.ours.predict(rates) / (other / self.other.predict(rates))


def published(catalogue: Catalogue) -> tuple[list[Run], list[Ratio]]:
    """The runs of runs.yaml, in its order."""
    content = parse_yaml(read_text(RUNS), str(RUNS))
    runs = [_run(name, values, values["config"], catalogue) for name, values in content["runs"].items()]
    ratios = [
        Ratio(
            name=name,
            role=values["role"],
            ours=_run(name, values, values["config"], catalogue),
            other=_run(name, values, values["other"], catalogue),
            tokens=(float(values["tokens"]), float(values["other_tokens"])),
            measured=float(values["ratio"]),
            source=values["source"],
            why=values.get("why", ""),
        )
        for name, values in content["ratios"].items()
    ]
    return runs, ratios


def _run(name: str, values: dict[str, Any], config: dict[str, Any], catalogue: Catalogue) -> Run:
    if "throughput" in values:
        measured = float(values["throughput"])
    else:
        measured = float(values["tokens"]) / float(values.get("hours", 1)) / 3600
    if config.get("layer_types") == "sliding_3_of_4":
        kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
        config = config | {"layer_types": kinds * (config["num_hidden_layers"] // 4)}
    job = Job(
        length=values["length"],
        batch=values["batch"],
        mtp_steps=values.get("mtp_steps", 1),
        fp8=values.get("fp8", False),
    )
    return Run(
        name=name,
        role=values["role"],
        work=workload_from(config, name),
        chip=catalogue.chip(values["chip"]),
        count=values["count"],
        job=job,
        measured=measured,
        whole="hours" in values,
        source=values["source"],
        why=values.get("why", ""),
        published=Layout(**values["layout"], spread_weights=False) if "layout" in values else None,
    )


@dataclass(frozen=True)
class Check:
    """A run's figure as it was published and as the planner says."""

    name: str
    role: str
    what: str
    measured: float
    predicted: float
    layout: str
    why: str

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1


def checks(catalogue: Catalogue, rates: Efficiency) -> list[Check]:
    """Every published run, predicted."""
    runs, ratios = published(catalogue)
    found = []
    for run in runs:
        layout = run.layout(rates)
        what = "tokens/s a chip, all hours" if run.whole else "tokens/s a chip, steps"
        found.append(
            Check(run.name, run.role, what, run.measured, run.predict(rates, layout), layout.describe(), run.why)
        )
    found += [
        Check(ratio.name, ratio.role, "share of the hours", ratio.measured, ratio.predict(rates), "", ratio.why)
        for ratio in ratios
    ]
    return found


def spread(found: list[Check]) -> float:
    """The root mean square of the held-out runs' errors, as logarithms: the planner's own error."""
    errors = [math.log1p(check.error) for check in found if check.role == HELD_OUT]
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def table(found: list[Check]) -> str:
    """The validation table of docs/lab/planning.md."""
    lines = [
        "| run | role | figure | published | planner | error |",
        "|---|---|---|--:|--:|--:|",
    ]
    for check in found:
        digits = ".3f" if check.measured < 1 else ",.0f"
        name = f"{check.name} *" if check.why else check.name
        lines.append(
            f"| {name} | {check.role} | {check.what} | {check.measured:{digits}} | {check.predicted:{digits}} "
            f"| {100 * check.error:+.0f}% |"
        )
    lines += ["", *(f"\\* {check.name}: {check.why}.  " for check in found if check.why), ""]
    for role in (FIT, HELD_OUT):
        errors = [abs(check.error) for check in found if check.role == role]
        within = sum(error <= 0.25 for error in errors)
        lines.append(
            f"{role.capitalize()} runs: {within} of {len(errors)} within 25%, median {100 * median(errors):.0f}%, "
            f"worst {100 * max(errors):.0f}%.  "
        )
    return "\n".join(lines)
