"""What a run costs while it trains: time, energy and FLOPs, beside the peak of the devices, in `ledger.json`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch

from gossamer import device as devices
from gossamer import units
from gossamer.cost.energy import EnergyMeter
from gossamer.cost.ledger import LEDGER_FILE, Ledger, Overhead, Work, read_ledger
from gossamer.cost.network import flops_by_part
from gossamer.files import write_atomically
from gossamer.train.config import TrainingConfig
from gossamer.train.recipe import Recipe
from gossamer.train.world import World

__all__ = ["CostMeter", "StepShape"]

# All in seconds.
_WRITE_EVERY = 1.0  # the shortest time between two writings of the file, unless one is asked for
_ENERGY_EVERY = 60.0  # a processor's counter turns over after some minutes
_PEAK_AFTER, _MAX_PEAK_PAUSE = 10.0, 300.0  # until a CPU's peak is measured again; then twice as long each time


class StepShape(NamedTuple):
    """The size of a step.

    Attributes:
        tokens: of all micro-batches and processes; where steps differ, on average
        length: tokens of a document, which the work of attention depends on
        trunk_share: the share of a step's work that is done in the trunk; below 1 where its weights are frozen
    """

    tokens: int
    length: int
    trunk_share: float = 1.0

    @classmethod
    def of(cls, training: TrainingConfig) -> StepShape:
        """Return the size of a step of rows that are all alike."""
        length = training.sequence_length
        return cls(training.batch_size * length * training.gradient_accumulation, length)


class CostMeter:
    """Books what a run spends. Every process has one; the main process writes `ledger.json`.

    Args:
        run: the run's folder; a ledger in it is continued
        recipe: the run's recipe, which knows the size of the vocabulary
        world: the processes
        began: when this process began with the run, by `time.perf_counter`
        shape: the size of a step; None: that of the recipe

    Raises:
        UserError: the ledger in the folder is damaged.
    """

    def __init__(self, run: Path, recipe: Recipe, world: World, began: float, shape: StepShape | None = None) -> None:
        training = recipe.training
        shape = StepShape.of(training) if shape is None else shape
        self.run, self.world = run, world
        self.tokens_per_step = shape.tokens
        mtp_steps = training.mtp_steps if training.mtp_loss_weight else 0
        flops = flops_by_part(recipe.model, shape.length, mtp_steps, training.sampled_vocab_size)
        self.flops = {part: each if part == "mtp" else shape.trunk_share * each for part, each in flops.items()}
        found = world.call_on_main(lambda: read_ledger(run))
        self._has_ledger = found is not None
        self.ledger = found or Ledger()
        self.ledger.price, self.ledger.currency = training.price, training.currency
        self._find_peak(devices.compute_dtype(world.device, training.precision))
        is_counted = world.rank % world.ranks_per_device == 0  # one rank for each device
        self._energy = EnergyMeter(world.device, is_counted)
        self._energy_known = not world.max_over_ranks(0 if self._energy.is_known else 1)
        self._joules: float = 0.0  # since those of all ranks were last added up; NaN: not known
        self._booked_until, self._written = began, -math.inf
        self._energy_read = self._energy_booked = time.perf_counter()

    def _find_peak(self, dtype: torch.dtype) -> None:
        """Measure what a device can do, unless the ledger knows it of this very device.

        All processes measure at once, as they will compute at once: those of one machine share its CPU.
        """
        ledger, world = self.ledger, self.world
        now = (devices.device_name(world.device), world.size, str(dtype).removeprefix("torch."))
        same = ledger.peak > 0 and now == (ledger.device, ledger.devices, ledger.dtype)
        if world.max_over_ranks(0 if same else 1):
            ledger.set_devices(*now, world.mean_over_ranks(devices.peak_rate(world.device, dtype)))
        self._dtype, self._peak_pause, self._peak_measured = dtype, _PEAK_AFTER, time.perf_counter()

    def _measure_peak_again(self) -> None:
        """Measure a CPU's peak at another moment: the machine may have been busy when the run began.

        An accelerator is measured once: as a rule nobody shares it, and its memory may be full by now.
        """
        is_due = time.perf_counter() - self._peak_measured >= self._peak_pause
        if devices.is_accelerator(self.world.device) or not self.world.max_over_ranks(int(is_due)):
            return
        peak = devices.peak_rate(self.world.device, self._dtype, again=True)
        self.ledger.raise_peak(self.world.mean_over_ranks(peak))
        self._peak_pause, self._peak_measured = min(2 * self._peak_pause, _MAX_PEAK_PAUSE), time.perf_counter()
        self.book("start")

    @property
    def flops_per_token(self) -> float:
        """FLOPs of a training step for each of its tokens."""
        return math.fsum(self.flops.values())

    @property
    def wall_seconds(self) -> float:
        """Seconds of the clock since the run was begun, without the times in which it was stopped."""
        booked = self.ledger.total.device_seconds / self.ledger.devices
        return booked + time.perf_counter() - self._booked_until

    def begin(self, step: int = 0, useful: Work | None = None) -> None:
        """Begin a run, or continue one: what was done after the checkpoint is repeated.

        Args:
            step: that the checkpoint was written after; 0: the run begins
            useful: the work that led to the checkpoint's weights; None: unknown, or there was none
        """
        if useful is None and not self._has_ledger:
            self.ledger.begun_after = step
        self.ledger.rewind(useful or Work(), "repeated")
        self.book("start")

    def roll_back(self, useful: Work | None) -> None:
        """Go back to a checkpoint whose weights `useful` led to: what was done after it has failed."""
        self.ledger.rewind(useful or Work(), "failed")
        self.book("checkpoints")

    def snapshot(self) -> Work:
        """Return the work that led to the weights as they are, for a checkpoint."""
        return self.ledger.useful

    # While it trains.

    def book_step(self, is_taken: bool, tokens: int) -> None:
        """Book a step of so many tokens, with the time since anything was last booked."""
        self.ledger.book_step(is_taken, tokens, self.flops, self._next_seconds())

    def book_work(self, flops: Mapping[str, float]) -> None:
        """Book FLOPs by part of the network before the first step, with the time since anything was last booked."""
        self.ledger.book_work(flops, self._next_seconds())

    def book(self, account: Overhead) -> float:
        """Book the time since anything was last booked on an account without steps, and return its seconds."""
        seconds = self._next_seconds()
        self.ledger.book_overhead(account, seconds)
        return seconds

    def _next_seconds(self) -> float:
        """Return the seconds since the last call, which are the next to be booked."""
        now = time.perf_counter()
        seconds, self._booked_until = now - self._booked_until, now
        if self._energy_known and now - self._energy_read >= _ENERGY_EVERY:
            self._read_energy()
        return seconds

    def _read_energy(self) -> None:
        joules, self._energy_read = self._energy.joules(), time.perf_counter()
        self._joules += math.nan if joules is None else joules

    def update(self, fraction: float, write: bool = False) -> None:
        """Bring the ledger up to date. Every process calls this.

        Args:
            fraction: the share of the run that is behind it
            write: write the file even if it was just written
        """
        self.ledger.fraction = fraction
        self._measure_peak_again()
        if self._energy_known:
            self._read_energy()
            joules = float(self.world.all_reduce(torch.tensor(self._joules, dtype=torch.float64)))
            seconds, self._energy_booked = self._energy_read - self._energy_booked, self._energy_read
            self.ledger.book_energy(None if math.isnan(joules) else joules, seconds)
            self._joules = 0.0
        if write or time.perf_counter() - self._written >= _WRITE_EVERY:
            self._write()

    def _write(self) -> None:
        if self.world.is_main:
            write_atomically(self.run / LEDGER_FILE, self.ledger.to_json())
        self._written = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what was booked, however training ended; the error that ended it counts before one of this file."""
        with suppress(*[OSError] if error is not None else []):
            self._write()

    # In words.

    def spent(self) -> dict[str, float]:
        """Return all that the run has cost so far, as the event of a validation holds it."""
        return {"flops": self.ledger.work.all_flops, "device_seconds": self.ledger.total.device_seconds}

    def mfu(self, tokens_per_second: float) -> float:
        """Return the share of the devices' peak that a speed over some steps comes to.

        A speed beyond the peak raises it: the devices have just shown that they can do more than was measured.
        """
        rate = tokens_per_second * self.flops_per_token / self.ledger.devices
        self.ledger.raise_peak(rate)
        return rate / self.ledger.peak

    def brief(self, mfu: float) -> str:
        """Return the cost so far in a few words."""
        ledger, estimate = self.ledger, self.ledger.estimate()
        parts = [f"MFU {units.percent(mfu)}", units.flops(ledger.work.all_flops)]
        if ledger.money is not None:
            whole = "" if estimate is None else f" of {units.money(estimate.money)}"
            parts.append(f"{units.money(ledger.money)}{whole} {ledger.currency}")
        return "  ".join(parts)

    def describe_peak(self) -> str:
        """Return a line about the peak that the work is measured against."""
        ledger = self.ledger
        return (
            f"peak: {units.flops(ledger.peak)}/s per device, measured in products of large matrices in {ledger.dtype}"
        )

    def summary(self) -> str:
        """Return a line about what the run has cost."""
        ledger, work = self.ledger, self.ledger.work
        parts = [
            f"{work.tokens:,} tokens",
            units.flops(work.all_flops),
            f"MFU {units.percent(ledger.mfu)}",
            f"{units.hours(ledger.device_hours)} device-hours",
        ]
        if ledger.kilowatt_hours is not None:
            share = "" if ledger.energy_share > 0.99 else f" in {units.percent(ledger.energy_share)} of that time"
            parts.append(units.energy(ledger.kilowatt_hours) + share)
        if ledger.money is not None:
            parts.append(units.money(ledger.money, ledger.currency))
        lost = [
            f"{units.amount(account.steps, 'step')} {name}"
            for name in ("repeated", "failed")
            if (account := ledger.accounts[name]).steps
        ]
        return f"cost: {', '.join(parts)}" + (f"; {' and '.join(lost)} among them" if lost else "")
