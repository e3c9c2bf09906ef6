"""Keeps a run's ledger while it trains: the clock, the energy, the peak that the work is measured against, the file."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from gossamer import device as devices
from gossamer import units
from gossamer.cost.energy import EnergyMeter
from gossamer.cost.ledger import LEDGER_FILE, Ledger, Overhead, read_ledger, work_from
from gossamer.cost.network import flops_by_part
from gossamer.run.metrics import write_atomically
from gossamer.train.recipe import Recipe
from gossamer.train.world import World

_EVERY = 1.0  # seconds from one writing of the file to the next at least, where nothing else asks for it
_ENERGY_EVERY = 60.0  # seconds; a processor's counter turns over after some minutes
_PEAK_AFTER, _PEAK_EVERY = (
    10.0,
    300.0,
)  # seconds until a CPU's peak is measured again, then twice as many, at most so many


class Meter:
    """Books what a run spends; every process has one, the main one writes ``ledger.json``.

    Args:
        run: the run's folder; a ledger that lies there is gone on with
        recipe: of the run, the network's vocabulary included
        world: the processes
        began: when this process began with the run, by `time.perf_counter`

    Raises:
        UserError: the ledger in the folder is damaged.
    """

    def __init__(self, run: Path, recipe: Recipe, world: World, began: float) -> None:
        training = recipe.training
        self.run, self.world = run, world
        self.tokens_per_step = training.batch_size * training.sequence_length * training.gradient_accumulation
        mtp_steps = training.mtp_steps if training.mtp_loss_weight else 0
        self.flops = flops_by_part(recipe.model, training.sequence_length, mtp_steps, training.sampled_vocab_size)
        found = world.on_main(lambda: read_ledger(run))
        self._goes_on = found is not None
        self.ledger = found or Ledger()
        self.ledger.price, self.ledger.currency = training.price, training.currency
        self._find_peak(devices.compute_dtype(world.device, training.precision))
        counted = devices.is_accelerator(world.device) or world.rank % world.sharing == 0  # one for each machine
        self._energy = EnergyMeter(world.device, counted)
        self._energy_known = not world.max(0 if self._energy.known else 1)
        self._joules: float = 0.0  # since the others were last asked for theirs; NaN: not known
        self._marked, self._written = began, -math.inf
        self._energy_read = self._energy_booked = time.perf_counter()

    def _find_peak(self, dtype: torch.dtype) -> None:
        """Measure what a device can do, unless the ledger knows it of this very device.

        All processes measure at once, as they will compute: those of one machine's CPU share it.
        """
        ledger, world = self.ledger, self.world
        now = (devices.device_name(world.device), world.size, str(dtype).removeprefix("torch."))
        same = ledger.peak > 0 and now == (ledger.device, ledger.devices, ledger.dtype)
        if world.max(0 if same else 1):
            ledger.work_on(*now, self._mean(devices.peak_rate(world.device, dtype)))
        self._dtype, self._peak_pause, self._peak_measured = dtype, _PEAK_AFTER, time.perf_counter()

    def _look_for_higher_peak(self) -> None:
        """Measure the peak at another moment; a machine may have been busy with something else when the run began.

        Of CPUs alone: an accelerator is not shared with others, as a rule, and its memory may be full by now.
        """
        late = time.perf_counter() - self._peak_measured >= self._peak_pause
        if devices.is_accelerator(self.world.device) or not self.world.max(int(late)):
            return
        self.ledger.raise_peak(self._mean(devices.peak_rate(self.world.device, self._dtype, again=True)))
        self._peak_pause, self._peak_measured = min(2 * self._peak_pause, _PEAK_EVERY), time.perf_counter()
        self.lap("start")

    def _mean(self, value: float) -> float:
        """The mean over processes."""
        return float(self.world.sum_(torch.tensor(value, dtype=torch.float64))) / self.world.size

    @property
    def flops_per_token(self) -> float:
        return math.fsum(self.flops.values())

    @property
    def seconds(self) -> float:
        """Of the clock since the run was begun, the times left out in which it was stopped."""
        booked = self.ledger.total.device_seconds / self.ledger.devices
        return booked + time.perf_counter() - self._marked

    def begin(self, saved: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint's progress, None for the run's beginning: what was done after it comes again."""
        at_checkpoint = (saved or {}).get("ledger")
        if saved is not None and at_checkpoint is None and not self._goes_on:
            self.ledger.begun_after = saved["step"]
        self.ledger.go_back(work_from(at_checkpoint), "repeated")
        self.lap("start")

    def go_back(self, saved: Mapping[str, Any]) -> None:
        """A rollback to a checkpoint: what was done after it has failed."""
        self.ledger.go_back(work_from(saved.get("ledger")), "failed")
        self.lap("checkpoints")

    def snapshot(self) -> dict[str, Any]:
        """What a checkpoint holds of the ledger: the work that led to its weights."""
        return asdict(self.ledger.useful)

    # While it trains.

    def step(self, taken: bool) -> None:
        """Book a step, with the time since anything was last booked."""
        self.ledger.step(taken, self.tokens_per_step, self.flops, self._lap())

    def beginning(self, flops: Mapping[str, float]) -> None:
        """Book work before the first step, so many FLOPs by part, with the time since anything was last booked."""
        self.ledger.beginning(flops, self._lap())

    def lap(self, account: Overhead) -> float:
        """Book the time since anything was last booked; returns its seconds."""
        seconds = self._lap()
        self.ledger.overhead(account, seconds)
        return seconds

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._marked = now - self._marked, now
        if self._energy_known and now - self._energy_read >= _ENERGY_EVERY:
            self._read_energy()
        return seconds

    def _read_energy(self) -> None:
        joules, self._energy_read = self._energy.joules(), time.perf_counter()
        self._joules += math.nan if joules is None else joules

    def update(self, done: float, write: bool = False) -> None:
        """Bring the ledger up to date; `done` is the share of the run that lies behind it. Every process calls this.

        The file is written where it is old, or with `write`.
        """
        self.ledger.done = done
        self._look_for_higher_peak()
        if self._energy_known:
            self._read_energy()
            joules = float(self.world.sum_(torch.tensor(self._joules, dtype=torch.float64)))
            seconds, self._energy_booked = self._energy_read - self._energy_booked, self._energy_read
            self.ledger.energy_used(None if math.isnan(joules) else joules, seconds)
            self._joules = 0.0
        if write or time.perf_counter() - self._written >= _EVERY:
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
        """Write what was booked, however the training ended; that error counts before one of this file."""
        with suppress(*[OSError] if error is not None else []):
            self._write()

    # What it tells.

    def spent(self) -> dict[str, float]:
        """All that the run has cost so far, as an evaluation's event has it."""
        return {"flops": self.ledger.work.all_flops, "device_seconds": self.ledger.total.device_seconds}

    def mfu(self, tokens_per_second: float) -> float:
        """The share of the devices' peak that a speed over some steps comes to.

        A speed beyond the peak raises it: the devices have just shown that they can do more than was measured.
        """
        rate = tokens_per_second * self.flops_per_token / self.ledger.devices
        self.ledger.raise_peak(rate)
        return rate / self.ledger.peak

    def brief(self, mfu: float) -> str:
        """Cost so far, in a few words."""
        ledger, estimate = self.ledger, self.ledger.estimate()
        parts = [f"MFU {units.percent(mfu)}", units.flops(ledger.work.all_flops)]
        if ledger.money is not None:
            whole = "" if estimate is None else f" of {units.money(estimate.money)}"
            parts.append(f"{units.money(ledger.money)}{whole} {ledger.currency}")
        return "  ".join(parts)

    def describe_peak(self) -> str:
        """What is measured against, in a line."""
        ledger = self.ledger
        return f"peak: {units.flops(ledger.peak)}/s a device, measured in products of large matrices in {ledger.dtype}"

    def summary(self) -> str:
        """What the run has cost, in a line."""
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
