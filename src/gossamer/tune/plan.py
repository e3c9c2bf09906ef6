"""What a tuning would take, before it is begun: samples, targets, time, memory, energy and money.

One real row of median length and the longest one are timed, with the update of the optimizer apart; a step's time
follows from the rows that it has. Nothing is kept of what these steps change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from gossamer import device as devices
from gossamer.cache import json_digest, read_cached_json, write_cached_json
from gossamer.cost.energy import EnergyMeter
from gossamer.data.chat.rows import ExampleBatch
from gossamer.train.recipe import Recipe, to_yaml
from gossamer.train.step import Learner
from gossamer.train.world import World
from gossamer.tune.examples import Material
from gossamer.tune.guard import Guard
from gossamer.tune.learner import base_network, learner_of
from gossamer.tune.memory import estimate_tuning
from gossamer.tune.objectives import needs_reference, objective_of
from gossamer.tune.recipe import tuning_of
from gossamer.tune.validation import kept_text
from gossamer.typed import Range
from gossamer.units import amount, duration, energy, money, size

__all__ = ["Plan", "plan_tuning", "read_plan"]

_PLANS = "plans"  # the folder of the cache that keeps them
_PLANNED_STEPS = 64  # of which the rows are laid out
_REPEATS = 3
_OF_A_STEP = 1 / 3  # the share of a step's time that its forward pass takes
_Amount = Annotated[float, Range(0, 1e30)]


@dataclass(frozen=True)
class Plan:
    """What a tuning would take.

    Attributes:
        method: sft, dpo or kto
        examples: how many are learned from
        samples: documents of these
        tokens: of all of them
        targets: tokens that are learned
        measured: examples that are measured
        steps: of the run, by its steps or in its time
        row_tokens: tokens of a row at most
        memory: bytes at the peak
        available: bytes that the device has
        fits: whether the memory is enough
        training_seconds: of all steps; None where nothing could be timed
        seconds: of everything
        kilowatt_hours: None where the machine does not tell
        money: None without a price
        currency: of the money
    """

    method: str
    examples: int
    samples: int
    tokens: int
    targets: int
    measured: int
    steps: int
    row_tokens: int
    memory: int
    available: int
    fits: bool
    training_seconds: _Amount | None = None
    seconds: _Amount | None = None
    kilowatt_hours: _Amount | None = None
    money: _Amount | None = None
    currency: str = "USD"

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return it for people."""
        share = self.targets / max(self.tokens, 1)
        found = [
            f"{self.method}: {amount(self.examples, 'example')} in {amount(self.samples, 'sample')}, {self.tokens:,} "
            f"tokens, {self.targets:,} of them learned ({share:.0%}); {self.measured:,} examples measured",
            f"{amount(self.steps, 'step')} in rows of at most {self.row_tokens:,} tokens",
            f"memory: about {size(self.memory)} at the peak, and the device has {size(self.available)}"
            + ("" if self.fits else "; a smaller --row_tokens or --context, or --lora, needs less"),
        ]
        if self.training_seconds is not None and self.seconds is not None:
            found.append(f"time: about {duration(self.training_seconds)} of training, {duration(self.seconds)} in all")
        if self.kilowatt_hours is not None:
            found.append(f"energy: about {energy(self.kilowatt_hours)}")
        if self.money is not None:
            found.append(f"money: about {money(self.money, self.currency)}")
        return found


@dataclass(frozen=True)
class _Kept:
    """A plan as the cache keeps it."""

    training_seconds: _Amount
    memory: int


def plan_tuning(prepare: Callable[[World], Material], device: str) -> Plan:
    """Plan a tuning, and keep the plan in the cache, so that the run can say how right it was.

    Args:
        prepare: returns what the tuning works on
        device: auto, cpu, cuda …

    Raises:
        UserError: the data or the base is refused.
    """
    devices.keep_freed_memory()
    world = World(devices.resolve(device))
    material = prepare(world)
    recipe, tuning, counts = material.recipe, tuning_of(material.recipe), material.counts
    estimate = estimate_tuning(recipe, material.base, world)
    documents = [sample for index in material.learned for sample in material.trained[index].samples]
    fits = estimate.fits(world.device)
    timed = _time(material, world) if fits else None
    steps = recipe.training.steps if timed is None else timed.steps
    price = recipe.training.price
    assert tuning.row_tokens is not None
    plan = Plan(
        counts.method,
        counts.examples,
        len(documents),
        counts.tokens,
        sum(sample.num_targets for sample in documents),
        len(material.measured),
        steps,
        tuning.row_tokens,
        estimate.needed,
        devices.memory_bytes(world.device),
        fits,
        None if timed is None else timed.training,
        None if timed is None else timed.all,
        None if timed is None or timed.watts is None else timed.watts * timed.all / 3.6e6,
        None if timed is None or price is None else price * timed.all / 3600,
        recipe.training.currency,
    )
    if plan.training_seconds is not None:
        write_cached_json(_file(recipe), asdict(_Kept(plan.training_seconds, estimate.total)))
    return plan


def read_plan(recipe: Recipe) -> tuple[float, int] | None:
    """Return the seconds of training and the bytes that were planned for a run of this recipe; None without a plan."""
    kept = read_cached_json(_file(recipe), _Kept)
    return None if kept is None else (kept.training_seconds, kept.memory)


def _file(recipe: Recipe) -> Path:
    """Return the file that keeps the plan of a recipe."""
    return recipe.corpus.cache_folder() / _PLANS / f"{json_digest(to_yaml(recipe))}.json"


@dataclass(frozen=True)
class _Timed:
    """What was timed, made to the whole run: steps, seconds of training and in all, and watts if they are known."""

    steps: int
    training: float
    all: float
    watts: float | None


def _time(material: Material, world: World) -> _Timed:
    """Take a few steps of rows of the run, and measure as the run will."""
    recipe, tuning = material.recipe, tuning_of(material.recipe)
    meter, began = EnergyMeter(world.device, True), time.perf_counter()
    network = base_network(material, world)
    loading = time.perf_counter() - began
    kept = kept_text(recipe, material.base.tokenizer, progress=True)
    guard = Guard(material, kept)
    measuring = _seconds(lambda: guard.measure(network))
    answering = _seconds(lambda: guard.answers(network))
    nothing = np.zeros((len(material.examples.examples), 2))
    objective = objective_of(tuning, material.trained, nothing if needs_reference(tuning) else None)
    learner = learner_of(network, material, world, objective)
    rows = [list(step) for step in islice(material.batches(world), _PLANNED_STEPS)]
    step = _step_seconds(learner, rows)
    steps = recipe.training.steps
    training = recipe.training.seconds or steps * step
    if recipe.training.seconds:
        steps = max(1, round(training / step))
    reference = _OF_A_STEP * step / tuning.batch * len(material.trained) if needs_reference(tuning) else 0.0
    pauses = steps // recipe.training.eval_every if recipe.training.eval_every else 0
    # The guard reads its rows twice and the text that is kept; an evaluation reads the rows once.
    row_tokens = sum(row.input_ids.numel() for row in guard.rows)
    evaluating = measuring * row_tokens / (2 * row_tokens + (0 if kept is None else kept.num_tokens))
    # Measured before and after, the divergence of both networks, and an evaluation at both ends.
    others = 2 * loading + 2 * measuring + (pauses + 4) * evaluating + 3 * answering
    seconds, joules = time.perf_counter() - began, meter.joules()
    return _Timed(steps, training, training + reference + others, None if joules is None else joules / seconds)


def _step_seconds(learner: Learner, steps: list[list[ExampleBatch]]) -> float:
    """Return the mean time of a step, from the times of the row of median length and of the longest one."""
    rows = sorted((row for step in steps for row in step), key=lambda row: row.input_ids.numel())
    median, longest = rows[len(rows) // 2], rows[-1]
    learner.step([longest], 0.0)  # the first step loads kernels and finds memory
    one, two, long = (
        min(_seconds(lambda batches=batches: learner.step(batches, 0.0)) for _ in range(_REPEATS))  # type: ignore[misc]
        for batches in ([median], [median, median], [longest])
    )
    of_median = max(two - one, 0.2 * one)
    update = one - of_median
    short_length, long_length = median.input_ids.numel(), longest.input_ids.numel()
    slope = of_median / short_length
    if long_length > short_length:
        slope = min(slope, max(0.0, (long - update - of_median) / (long_length - short_length)))
    constant = of_median - slope * short_length
    times = [update + sum(constant + slope * row.input_ids.numel() for row in step) for step in steps]
    return sum(times) / len(times)


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
