"""The budget dial: from what may be spent to the network, batch and learning rate that make the most of it.

A few steps measure how fast this machine trains the size that looks best, and the law of `cost/scaling.py` says what
each size would reach in what is left of the budget. Where the best size is then another one, it is measured, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from gossamer import device as devices
from gossamer import units
from gossamer.cost.budget import parse_budget
from gossamer.cost.network import flops_by_part
from gossamer.cost.scaling import Law, Text, law
from gossamer.cost.sizes import WIDTHS, sized, trunk_parameters
from gossamer.data.dataset import Dataset
from gossamer.errors import UserError
from gossamer.reading import checked
from gossamer.run.compressed import compressed_bits
from gossamer.run.memory import estimate_peak
from gossamer.run.metrics import METRICS_FILE, read_metrics
from gossamer.run.sized import sized_recipe
from gossamer.run.throughput import tokens_per_second
from gossamer.train.recipe import Recipe
from gossamer.train.world import World

__all__ = ["MOST_EPOCHS", "Plan", "choose", "read_plan"]

MOST_EPOCHS = 4
"""Text read more often than this teaches less than new text would (arXiv 2305.16264)."""

_MEASURING = 0.03  # of the budget's time, at most
_TRAINING = 0.94  # of what is then left; evaluations, samples and checkpoints have the rest
_FEWEST_STEPS = 20
_GUESS = 0.3  # of the device's peak, before anything is measured


@dataclass(frozen=True)
class Plan:
    """What the dial has chosen, and what it expects of it.

    Attributes:
        width: of the network
        tokens: to be trained on
        epochs: how often that reads the training text
        bits_per_byte: predicted for held-out text of the same kind
        error: relative error of that which nine of ten runs stay within (`Law.band`)
        extrapolated: the network or its training is beyond those runs
        tokens_per_second: measured; None for a budget of FLOPs, which needs no clock
        measured: widths that were, in this order
    """

    width: int
    tokens: float
    epochs: float
    bits_per_byte: float
    error: float
    extrapolated: bool
    tokens_per_second: float | None
    measured: tuple[int, ...]

    def describe(self, budget: str) -> str:
        """What was chosen, in a line."""
        speed = "" if self.tokens_per_second is None else f" at {units.count(self.tokens_per_second)} tokens/s"
        beyond = "; beyond the runs that the prediction was fitted to" if self.extrapolated else ""
        return (
            f"budget {budget}: width {self.width}, {units.count(self.tokens)} tokens{speed}, "
            f"{self.epochs:.2g} times the text; predicted {self.bits_per_byte:.4f} bits per byte "
            f"± {self.error:.1%}{beyond}"
        )

    def warning(self, budget: str, unique_bytes: int) -> str | None:
        """What to do about text that would be read too often; None if it would not."""
        if self.epochs <= MOST_EPOCHS:
            return None
        wanted = units.size(unique_bytes * self.epochs / MOST_EPOCHS)
        return (
            f"budget {budget} would read the {units.size(unique_bytes)} of training text {self.epochs:.1f} times, "
            f"more than {MOST_EPOCHS}, beyond which it gains little; {MOST_EPOCHS / self.epochs:.0%} of the budget "
            f"fits this text, or {wanted} of text this budget"
        )

    def outcome(self, bits_per_byte: float) -> str:
        """How the run compares, in a line."""
        difference = bits_per_byte / self.bits_per_byte - 1
        word = "more" if difference > 0 else "less"
        place = "within" if abs(difference) <= self.error else "outside"
        return (
            f"predicted were {self.bits_per_byte:.4f} bits per byte ± {self.error:.1%}: it is {abs(difference):.1%} "
            f"{word}, {place} that band"
        )


def choose(base: Recipe, dataset: Dataset, world: World, began: float) -> tuple[Recipe, Plan]:
    """The recipe for `base.training.budget`, with what it is predicted to reach; every process gets the same.

    Args:
        base: says what does not depend on the budget, the vocabulary included
        began: when the command began, by `time.perf_counter`

    Raises:
        UserError: what is left of the budget buys too little, or not even the smallest network fits into memory.
    """
    return _Choice(base, dataset, world, began).make()


def read_plan(run: Path) -> Plan | None:
    """The plan that a run in this folder was begun with; None if it was begun without.

    Raises:
        UserError: it is damaged.
    """
    if not (run / METRICS_FILE).is_file():
        return None
    found = next((event for event in read_metrics(run) if event["event"] == "plan"), None)
    if found is None:
        return None
    values = {item.name: found.get(item.name) for item in fields(Plan)}
    return checked(values, Plan, f"{run / METRICS_FILE}: the event 'plan'", "restore it")


class _Choice:
    def __init__(self, base: Recipe, dataset: Dataset, world: World, began: float) -> None:
        self.base, self.dataset, self.world, self.began = base, dataset, world, began
        training = base.training
        budget = parse_budget(training.budget, training.price, training.currency)
        self.seconds = budget.seconds(training.price, world.size)
        self.flops = budget.amount
        self.text = Text(dataset.train.num_bytes, compressed_bits(dataset))
        self.bytes_per_token = dataset.train.num_bytes / dataset.train.num_tokens
        self.law: Law = law()
        self.rates: dict[int, float] = {}  # FLOP/s by width, as far as measured
        self.left_to_measure = 0.0 if self.seconds is None else _MEASURING * self.seconds
        self.widths: Sequence[int] = WIDTHS

    def make(self) -> tuple[Recipe, Plan]:
        while True:
            # What was predicted with the time that is left now; every process has to see the same.
            left = self.world.on_main(self._left)
            tokens = {width: self._tokens(width, left) for width in self.widths}
            width = min(self.widths, key=lambda width: self._predicted(width, tokens[width]))
            recipe = self._fitting(sized_recipe(self.base, width, tokens[width], self.world.size))
            if recipe is None:
                self.widths = [other for other in self.widths if other < width]
                if not self.widths:
                    raise UserError("not even the smallest network of the family fits into the device's memory")
            elif self.seconds is None or width in self.rates or (self.rates and self.left_to_measure <= 0):
                break
            else:
                self._measure(recipe, width)
        return recipe, self._plan(recipe, width, tokens[width])

    def _left(self) -> float:
        """Seconds of the budget that training will have, as it stands; of a budget of FLOPs none are asked for."""
        return 0.0 if self.seconds is None else _TRAINING * (self.seconds - (time.perf_counter() - self.began))

    def _tokens(self, width: int, left: float) -> float:
        """What the budget buys of a network's training."""
        if self.seconds is None:
            return self.flops / self._flops_per_token(width)
        return max(left, 1e-3) * self._rate(width) / self._flops_per_token(width)

    def _rate(self, width: int) -> float:
        """FLOP/s of training: measured, that of the nearest width that was, or a guess."""
        if not self.rates:
            training, device = self.base.training, self.world.device
            peak = devices.peak_rate(device, devices.compute_dtype(device, training.precision))
            return self.world.on_main(lambda: _GUESS * peak * self.world.size)
        return self.rates[min(self.rates, key=lambda known: abs(math.log(known / width)))]

    def _flops_per_token(self, width: int) -> float:
        training = self.base.training
        steps = training.mtp_steps if training.mtp_loss_weight else 0
        model = sized(self.base.model, width)
        return math.fsum(flops_by_part(model, training.sequence_length, steps, training.sampled_vocab_size).values())

    def _predicted(self, width: int, tokens: float) -> float:
        size = trunk_parameters(sized(self.base.model, width))
        return self.law.bits_per_byte(size, tokens * self.bytes_per_token, self.text)

    def _fitting(self, recipe: Recipe) -> Recipe | None:
        """The recipe with its batch in as many parts as memory demands; None if none is small enough."""
        training = recipe.training
        while self.world.max(0 if self._fits(recipe) else 1):
            rows, odd = divmod(training.batch_size, 2)
            if odd or rows % self.world.size:
                return None
            training = replace(training, batch_size=rows, gradient_accumulation=2 * training.gradient_accumulation)
            recipe = replace(recipe, training=training)
        return recipe

    def _fits(self, recipe: Recipe) -> bool:
        world = self.world
        return estimate_peak(recipe, world.device, world.size).fits(world.device, world.sharing)

    def _measure(self, recipe: Recipe, width: int) -> None:
        began = time.perf_counter()
        # Half of what may be spent, so that there is something left should another width then look better.
        speed = tokens_per_second(recipe, self.dataset, self.world, self.left_to_measure / 2)
        self.rates[width] = speed * self._flops_per_token(width)
        self.left_to_measure -= self.world.on_main(lambda: time.perf_counter() - began)

    def _plan(self, recipe: Recipe, width: int, tokens: float) -> Plan:
        training = recipe.training
        a_step = training.batch_size * training.sequence_length * training.gradient_accumulation
        if tokens < _FEWEST_STEPS * a_step:
            raise UserError(
                f"budget {training.budget!r} is too small: what is left of it buys {tokens / a_step:.0f} steps here, "
                f"and {_FEWEST_STEPS} are the least; a larger one, or the same again, now that the text is in the cache"
            )
        read, size = tokens * self.bytes_per_token, trunk_parameters(recipe.model)
        return Plan(
            width=width,
            tokens=tokens,
            epochs=read / self.text.unique_bytes,
            bits_per_byte=self._predicted(width, tokens),
            error=self.law.band(size, read, self.text, by_clock=self.seconds is not None),
            extrapolated=not self.law.covers(size, read),
            tokens_per_second=None if self.seconds is None else self._rate(width) / self._flops_per_token(width),
            measured=tuple(self.rates),
        )
