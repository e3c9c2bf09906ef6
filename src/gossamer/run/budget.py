"""From a budget to a recipe: the network, batch and learning rate that make the most of what may be spent.

A few steps measure how fast this machine trains the size that looks best, and the law of `cost/scaling.py` says what
each size would reach with what is left of the budget. If the best size is then another one, it is measured as well.
"""

from __future__ import annotations

import bz2
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from gossamer import device as devices
from gossamer import units
from gossamer.cost.budget import parse_budget
from gossamer.cost.network import flops_by_part
from gossamer.cost.scaling import Law, Text, law
from gossamer.cost.width_family import WIDTHS, sized, trunk_parameters
from gossamer.data.dataset import Dataset
from gossamer.errors import UserError
from gossamer.reading import checked
from gossamer.run.memory import estimate_peak
from gossamer.run.metrics import METRICS_FILE, read_metrics
from gossamer.train.recipe import Recipe
from gossamer.train.step import Learner, training_batches
from gossamer.train.world import World

__all__ = [
    "MAX_EPOCHS",
    "BudgetPlan",
    "choose_recipe",
    "compressed_bits",
    "read_plan",
    "sized_recipe",
    "tokens_per_second",
]

MAX_EPOCHS = 4
"""Text read more often than this teaches less than new text would (arXiv 2305.16264)."""

_MEASURING = 0.03  # at most this share of the budget's time measures speeds
_TRAINING = 0.94  # of what is then left trains; validation, samples and checkpoints have the rest
_MIN_STEPS = 20
_GUESS = 0.3  # share of the device's peak that training is taken to reach before anything is measured

_BASE_WIDTH, _BASE_TOKENS = 128, 1e6  # what the base recipe's learning rate and batch are meant for
_MIN_ROWS = 4

_MEASURED_STEPS = 12

_BLOCK = 900_000  # bytes of a block of bzip2, whose result for longer text is the same
_EXCERPTS = 16  # places of the text that the block is taken from


@dataclass(frozen=True)
class BudgetPlan:
    """The network that was chosen for a budget, and what it is expected to reach.

    Attributes:
        width: hidden size of the network
        tokens: how many tokens it will be trained on
        epochs: how often that reads the training text
        bits_per_byte: predicted for held-out text of the same kind
        error: relative error of the prediction that nine of ten runs stay within (`Law.band`)
        extrapolated: whether the network or its training is beyond the runs that the law was fitted to
        tokens_per_second: measured speed; None for a budget of FLOPs, which needs no clock
        measured: widths whose speed was measured, in this order
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
        """Return a line that says what was chosen."""
        speed = "" if self.tokens_per_second is None else f" at {units.count(self.tokens_per_second)} tokens/s"
        beyond = "; beyond the runs that the prediction was fitted to" if self.extrapolated else ""
        return (
            f"budget {budget}: width {self.width}, {units.count(self.tokens)} tokens{speed}, "
            f"{self.epochs:.2g} times the text; predicted {self.bits_per_byte:.4f} bits per byte "
            f"± {units.percent(self.error, 1)}{beyond}"
        )

    def warning(self, budget: str, unique_bytes: int) -> str | None:
        """Return what to do about text that would be read too often; None if it would not be."""
        if self.epochs <= MAX_EPOCHS:
            return None
        wanted = units.size(unique_bytes * self.epochs / MAX_EPOCHS)
        return (
            f"budget {budget} would read the {units.size(unique_bytes)} of training text {self.epochs:.1f} times, "
            f"more than {MAX_EPOCHS}, beyond which it gains little; {units.percent(MAX_EPOCHS / self.epochs)} of the "
            f"budget fits this text, or {wanted} of text this budget"
        )

    def outcome(self, bits_per_byte: float) -> str:
        """Return a line that compares the run with the prediction."""
        difference = bits_per_byte / self.bits_per_byte - 1
        word = "more" if difference > 0 else "less"
        place = "within" if abs(difference) <= self.error else "outside"
        return (
            f"predicted were {self.bits_per_byte:.4f} bits per byte ± {units.percent(self.error, 1)}: it is "
            f"{units.percent(abs(difference), 1)} {word}, {place} that band"
        )


def choose_recipe(base: Recipe, dataset: Dataset, world: World, began: float) -> tuple[Recipe, BudgetPlan]:
    """Choose the recipe for `base.training.budget`; every process gets the same.

    Args:
        base: what does not depend on the budget, the vocabulary included
        dataset: the text, which tells how hard it is and how fast the machine learns from it
        world: the processes
        began: when the command began, by `time.perf_counter`

    Returns:
        The recipe, and what it is predicted to reach.

    Raises:
        UserError: what is left of the budget buys too little, or not even the smallest network fits into memory.
    """
    return _Search(base, dataset, world, began).run()


def read_plan(run: Path) -> BudgetPlan | None:
    """Return the plan that a run in this folder was begun with; None if it was begun without one.

    Raises:
        UserError: it is damaged.
    """
    if not (run / METRICS_FILE).is_file():
        return None
    found = next((event for event in read_metrics(run) if event["event"] == "plan"), None)
    if found is None:
        return None
    values = {item.name: found.get(item.name) for item in fields(BudgetPlan)}
    return checked(values, BudgetPlan, f"{run / METRICS_FILE}: the event 'plan'", "restore it")


class _Search:
    """Looks for the best width, measuring speeds as far as it needs them."""

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
        self.seconds_to_measure = 0.0 if self.seconds is None else _MEASURING * self.seconds
        self.widths: Sequence[int] = WIDTHS

    def run(self) -> tuple[Recipe, BudgetPlan]:
        while True:
            # The predictions change with the time that is left; every process has to see the same.
            left = self.world.call_on_main(self._seconds_left)
            tokens = {width: self._tokens(width, left) for width in self.widths}
            width = min(self.widths, key=lambda width: self._predicted(width, tokens[width]))
            recipe = self._fitting(sized_recipe(self.base, width, tokens[width], self.world.size))
            if recipe is None:
                self.widths = [other for other in self.widths if other < width]
                if not self.widths:
                    raise UserError("not even the smallest network of the family fits into the device's memory")
            elif self.seconds is None or width in self.rates or (self.rates and self.seconds_to_measure <= 0):
                break
            else:
                self._measure(recipe, width)
        return recipe, self._plan(recipe, width, tokens[width])

    def _seconds_left(self) -> float:
        """Return the seconds of the budget that training will have; 0 for a budget of FLOPs, which needs none."""
        return 0.0 if self.seconds is None else _TRAINING * (self.seconds - (time.perf_counter() - self.began))

    def _tokens(self, width: int, left: float) -> float:
        """Return the tokens that the budget pays for."""
        if self.seconds is None:
            return self.flops / self._flops_per_token(width)
        return max(left, 1e-3) * self._rate(width) / self._flops_per_token(width)

    def _rate(self, width: int) -> float:
        """Return the FLOP/s of training: as measured, at this width or the nearest one, or a guess."""
        if not self.rates:
            training, device = self.base.training, self.world.device
            peak = devices.peak_rate(device, devices.compute_dtype(device, training.precision))
            return self.world.call_on_main(lambda: _GUESS * peak * self.world.size)
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
        """Return the recipe with its batch in as many parts as memory asks for; None if none is small enough."""
        training = recipe.training
        while self.world.max_over_ranks(0 if self._fits(recipe) else 1):
            rows, odd = divmod(training.batch_size, 2)
            if odd or rows % self.world.size:
                return None
            training = replace(training, batch_size=rows, gradient_accumulation=2 * training.gradient_accumulation)
            recipe = replace(recipe, training=training)
        return recipe

    def _fits(self, recipe: Recipe) -> bool:
        world = self.world
        return estimate_peak(recipe, world.device, world.size).fits(world.device, world.ranks_per_device)

    def _measure(self, recipe: Recipe, width: int) -> None:
        began = time.perf_counter()
        # Half of the time, so that some is left if another width then looks better.
        speed = tokens_per_second(recipe, self.dataset, self.world, self.seconds_to_measure / 2)
        self.rates[width] = speed * self._flops_per_token(width)
        self.seconds_to_measure -= self.world.call_on_main(lambda: time.perf_counter() - began)

    def _plan(self, recipe: Recipe, width: int, tokens: float) -> BudgetPlan:
        training = recipe.training
        step_tokens = training.batch_size * training.sequence_length * training.gradient_accumulation
        if tokens < _MIN_STEPS * step_tokens:
            raise UserError(
                f"budget {training.budget!r} is too small: what is left of it buys "
                f"{units.amount(round(tokens / step_tokens), 'step')} here, and {_MIN_STEPS} are the least; a larger "
                "one, or the same again, now that the text is in the cache"
            )
        read, size = tokens * self.bytes_per_token, trunk_parameters(recipe.model)
        return BudgetPlan(
            width=width,
            tokens=tokens,
            epochs=read / self.text.unique_bytes,
            bits_per_byte=self._predicted(width, tokens),
            error=self.law.band(size, read, self.text, by_clock=self.seconds is not None),
            extrapolated=not self.law.covers(size, read),
            tokens_per_second=None if self.seconds is None else self._rate(width) / self._flops_per_token(width),
            measured=tuple(self.rates),
        )


# Recipes by size.


def sized_recipe(base: Recipe, width: int, tokens: float, world_size: int = 1) -> Recipe:
    """Return the recipe for a network of a given width that learns from about so many tokens.

    The learning rate falls with the root of the width: Muon's step has a spectral norm that grows with the root of a
    matrix's size, and activations should change as much at any size (arXiv 2310.17813). The batch grows with the root
    of the tokens, as does the batch beyond which more rows save no steps (arXiv 2410.21676); it is a power of two, and
    the processes share it equally. At most a tenth of the steps warms up. All evaluations together read a few percent
    of what is trained on.

    Args:
        base: a recipe that is meant for a width of 128 and a million tokens
        width: hidden size of the network
        tokens: how many tokens it will be trained on
        world_size: how many processes share a batch
    """
    training = base.training
    rows_wanted = training.batch_size * math.sqrt(tokens / _BASE_TOKENS)
    rows = max(_MIN_ROWS, 2 ** round(math.log2(rows_wanted)))
    rows = math.ceil(rows / world_size) * world_size
    batch_tokens = rows * training.sequence_length
    steps = int(tokens / batch_tokens)
    max_read = {
        "eval_tokens": max(0.005 * tokens, batch_tokens),
        "final_eval_tokens": max(0.05 * tokens, 8 * batch_tokens),
    }
    return replace(
        base,
        model=sized(base.model, width),
        optimizer=replace(base.optimizer, learning_rate=base.optimizer.learning_rate * math.sqrt(_BASE_WIDTH / width)),
        schedule=replace(base.schedule, warmup_steps=min(base.schedule.warmup_steps, steps // 10)),
        training=replace(
            training,
            batch_size=rows,
            eval_every=max(1, steps // 8),
            sample_every=max(1, steps // 2),
            checkpoint_every=max(1, steps // 10),
            **{name: min(getattr(training, name), round(limit)) for name, limit in max_read.items()},
        ),
    )


# What is measured beforehand.


def tokens_per_second(recipe: Recipe, dataset: Dataset, world: World, seconds: float) -> float:
    """Return how fast this machine trains by a recipe. Every process calls this and gets the same.

    A few steps are taken and forgotten. The median counts, since other work on the machine slows the run down as well.
    The first step, in which kernels are loaded and memory is found, counts only if there is no time for another.

    Args:
        recipe: with the size of the vocabulary
        dataset: the text that the steps learn from
        world: the processes
        seconds: about how long it may take
    """
    began, training = time.perf_counter(), recipe.training
    learner, batches = Learner.from_seed(recipe, world), training_batches(dataset.train, training, world)
    times: list[float] = []
    is_late = 0
    while len(times) < _MEASURED_STEPS and not is_late:
        step_began = time.perf_counter()
        learner.step([next(batches) for _ in range(training.gradient_accumulation)], recipe.optimizer.learning_rate)
        now = time.perf_counter()
        times.append(world.mean_over_ranks(now - step_began))
        is_late = world.max_over_ranks(int(now - began + times[-1] > seconds))
    tokens = training.batch_size * training.sequence_length * training.gradient_accumulation
    return tokens / statistics.median(times[1:] or times)


def compressed_bits(dataset: Dataset) -> float:
    """Return how hard the training text is: the bits that bzip2 needs for a byte of it.

    Up to 900 kB of the text are compressed, taken from it evenly, from each set by its weight. bzip2 sorts contexts of
    any length, as a language model uses them.
    """
    data, tokenizer = dataset.train, dataset.tokenizer
    weights = sum(data.weights.values())
    text = bytearray()
    for name, file in data.token_files.items():
        tokens = _BLOCK * data.weights[name] / weights / (file.num_bytes / file.num_tokens)
        count = min(int(tokens), file.num_tokens) // _EXCERPTS
        for number in range(_EXCERPTS):
            begin = number * (file.num_tokens // _EXCERPTS)
            text += tokenizer.decode(file.read(begin, count).tolist()).encode()
    return 8 * len(bz2.compress(bytes(text), 9)) / max(len(text), 1)
