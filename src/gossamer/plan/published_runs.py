"""Published training runs beside what the planner says of them; `benchmarks/planner_fit.py` fits to some of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gossamer.cost.layout import Layout
from gossamer.cost.network import Network
from gossamer.plan.catalogue import Catalogue, Chip
from gossamer.plan.efficiency import Efficiency
from gossamer.plan.other_families import network_from_json
from gossamer.plan.search import fitting_layouts
from gossamer.plan.timing import Job, StepTimer, micro_batches
from gossamer.reading import read_text
from gossamer.units import percent
from gossamer.yaml_files import parse_yaml

RUNS = Path(__file__).parent / "published_runs.yaml"
FIT, HELD_OUT, SHOWN = "fit", "held-out", "shown"


@dataclass(frozen=True)
class PublishedRun:
    """A run as it was published; the head of published_runs.yaml explains the fields.

    Attributes:
        name: name of the run
        role: `fit`, `held-out` or `shown`
        network: the network
        chip: the chip that it ran on
        count: number of chips
        job: what a step was made of
        measured: tokens per second and chip
        is_over_all_hours: whether `measured` counts all the run's hours, not its steps alone
        source: where the figures were read
        why: why the run does not count, or what is to be known of it
        published: the layout as it was published; None if it was not
    """

    name: str
    role: str
    network: Network
    chip: Chip
    count: int
    job: Job
    measured: float
    is_over_all_hours: bool
    source: str
    why: str
    published: Layout | None

    def timer(self, rates: Efficiency) -> StepTimer:
        """Return what times a step of this run."""
        return StepTimer(self.network, self.chip, rates, self.job)

    def layout(self, rates: Efficiency) -> Layout:
        """Return the published layout; where there is none, the planner's own, which is the fastest that fits."""
        if self.published is not None:
            return self.published
        found = fitting_layouts(self.timer(rates), self.count, max_layouts=1)
        assert found, f"{self.name} does not fit its own {self.count} chips"
        return found[0].layout

    def predict(self, rates: Efficiency, layout: Layout | None = None) -> float:
        """Return the tokens per second and chip that the planner expects where `measured` was measured."""
        layout = layout or self.layout(rates)
        tokens = micro_batches(layout, self.job) * layout.rows * layout.data * self.job.length
        speed = tokens / sum(self.timer(rates).parts(layout).values()) / self.count
        return speed * rates.availability if self.is_over_all_hours else speed


@dataclass(frozen=True)
class Ratio:
    """What one run costs as a share of another, as it was published.

    Attributes:
        name: name of the ratio
        role: `fit`, `held-out` or `shown`
        ours: the run
        other: the run that it is compared with
        tokens: tokens of both runs
        measured: the share
        source: where it was read
        why: what is to be known of it
    """

    name: str
    role: str
    ours: PublishedRun
    other: PublishedRun
    tokens: tuple[float, float]
    measured: float
    source: str
    why: str

    def predict(self, rates: Efficiency) -> float:
        """Return the share that the planner expects."""
        own, other = self.tokens
        return own / self.ours.predict(rates) / (other / self.other.predict(rates))


def load_published_runs(catalogue: Catalogue) -> tuple[list[PublishedRun], list[Ratio]]:
    """Return the runs and the ratios of published_runs.yaml, in its order."""
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


def _run(name: str, values: dict[str, Any], config: dict[str, Any], catalogue: Catalogue) -> PublishedRun:
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
        trained=values.get("trained", 1.0),
    )
    return PublishedRun(
        name=name,
        role=values["role"],
        network=network_from_json(config, name),
        chip=catalogue.chip(values["chip"]),
        count=values["count"],
        job=job,
        measured=measured,
        is_over_all_hours="hours" in values,
        source=values["source"],
        why=values.get("why", ""),
        published=Layout(**values["layout"], spread_weights=False) if "layout" in values else None,
    )


@dataclass(frozen=True)
class Prediction:
    """A figure of a run as it was published, and as the planner predicts it.

    Attributes:
        name: name of the run
        role: `fit`, `held-out` or `shown`
        what: what the figure is
        measured: the published figure
        predicted: the planner's figure
        layout: the layout that it is predicted for
        has_linear_attention: whether the network has linear attention
        why: what is to be known of the run
    """

    name: str
    role: str
    what: str
    measured: float
    predicted: float
    layout: str
    has_linear_attention: bool
    why: str

    @property
    def error(self) -> float:
        """The predicted over the measured figure, less one."""
        return self.predicted / self.measured - 1


def predictions(catalogue: Catalogue, rates: Efficiency) -> list[Prediction]:
    """Return every published run and ratio with what the planner predicts."""
    runs, ratios = load_published_runs(catalogue)
    found = []
    for run in runs:
        layout = run.layout(rates)
        found.append(
            Prediction(
                name=run.name,
                role=run.role,
                what="tokens/s per chip, all hours" if run.is_over_all_hours else "tokens/s per chip, steps",
                measured=run.measured,
                predicted=run.predict(rates, layout),
                layout=layout.describe(),
                has_linear_attention=run.network.has_linear_attention,
                why=run.why,
            )
        )
    found += [
        Prediction(
            name=ratio.name,
            role=ratio.role,
            what="share of the hours",
            measured=ratio.measured,
            predicted=ratio.predict(rates),
            layout="",
            has_linear_attention=ratio.ours.network.has_linear_attention,
            why=ratio.why,
        )
        for ratio in ratios
    ]
    return found


def held_out(found: list[Prediction], has_linear_attention: bool) -> list[Prediction]:
    """Return the predictions of the runs that were held out and have linear attention, or have none."""
    return [check for check in found if (check.role, check.has_linear_attention) == (HELD_OUT, has_linear_attention)]


def planner_error(found: list[Prediction]) -> float:
    """Return the root mean square of the predictions' errors, as logarithms."""
    return math.sqrt(sum(math.log1p(check.error) ** 2 for check in found) / len(found))


def predictions_table(found: list[Prediction]) -> str:
    """Return the table of predictions in docs/lab/planning.md."""
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
    for group, checks in (
        ("Fit runs", [check for check in found if check.role == FIT]),
        ("Held-out runs without linear attention", held_out(found, has_linear_attention=False)),
        ("Held-out runs with linear attention", held_out(found, has_linear_attention=True)),
    ):
        errors = [abs(check.error) for check in checks]
        within = sum(error <= 0.25 for error in errors)
        lines.append(
            f"{group}: {within} of {len(errors)} within 25%, median {percent(median(errors))}, "
            f"worst {percent(max(errors))}.  "
        )
    return "\n".join(lines)
