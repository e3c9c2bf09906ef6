"""The ledger of a run: what it has spent, on what, and what it will have spent at its end (docs/ledger.md).

Every device-second is booked once, on one account:

    useful       steps that led to the weights as they are now
    repeated     steps whose outcome a stop lost, so that they were repeated
    failed       steps that were skipped because their gradient was not finite, and steps that a rollback undid
    start        loading PyTorch, reading data, building the network, loading a checkpoint
    evaluation, samples, checkpoints    time in which training stood still
    reference   in a tuning, what the base makes of the examples, before the first step

Only the first three have steps, tokens and FLOPs. FLOPs are those of the model (`gossamer.cost.network`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from gossamer.reading import MissingFile, checked, parse_json, read_bytes
from gossamer.typed import Range

__all__ = [
    "LEDGER_FILE",
    "OVERHEADS",
    "STEPS",
    "Estimate",
    "Ledger",
    "Overhead",
    "Work",
    "read_ledger",
]

LEDGER_FILE = "ledger.json"
_REMEDY = "restore or delete it"
STEPS = ("useful", "repeated", "failed")
OVERHEADS = ("start", "reference", "evaluation", "samples", "checkpoints")
Overhead = Literal["start", "reference", "evaluation", "samples", "checkpoints"]

_Count = Annotated[int, Range(0, (1 << 63) - 1)]
_Amount = Annotated[float, Range(0, 1e60)]
_STORED_NAMES = {"fraction": "done"}  # fields that the file has under another name
_HOUR = 3600.0
_KWH = 3.6e6  # joules


@dataclass
class Work:
    """The work and the time that were booked on one account.

    Attributes:
        steps: optimizer steps
        tokens: tokens of these steps
        flops: FLOPs of these steps, by part of the network
        device_seconds: time of all devices together
        possible_flops: FLOPs that they could have computed in that time at their measured peak
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # as reading.checked reads it

    steps: _Count = 0
    tokens: _Count = 0
    flops: dict[str, _Amount] = field(default_factory=dict)
    device_seconds: _Amount = 0.0
    possible_flops: _Amount = 0.0

    @property
    def all_flops(self) -> float:
        """FLOPs of all parts."""
        return math.fsum(self.flops.values())

    def __add__(self, other: Work) -> Work:
        parts = {part: self.flops.get(part, 0.0) + other.flops.get(part, 0.0) for part in self.flops | other.flops}
        return Work(
            self.steps + other.steps,
            self.tokens + other.tokens,
            parts,
            self.device_seconds + other.device_seconds,
            self.possible_flops + other.possible_flops,
        )

    def beyond(self, other: Work) -> Work:
        """Return what this work exceeds other work by; zero where it is less."""
        return Work(
            max(self.steps - other.steps, 0),
            max(self.tokens - other.tokens, 0),
            {part: max(flops - other.flops.get(part, 0.0), 0.0) for part, flops in self.flops.items()},
            max(self.device_seconds - other.device_seconds, 0.0),
            max(self.possible_flops - other.possible_flops, 0.0),
        )


@dataclass(frozen=True)
class Estimate:
    """The estimate of everything that a run will have spent when it is over.

    Attributes:
        tokens: tokens of all steps, repeated and failed ones included
        flops: FLOPs of all steps, likewise
        device_hours: hours of all devices together
        energy: energy in kWh; None if it is not known
        money: money in the ledger's currency; None if the price is not known
    """

    tokens: float
    flops: float
    device_hours: float
    energy: float | None
    money: float | None


@dataclass
class Ledger:
    """The accounts of a run.

    Attributes:
        device: name of the devices at work now
        devices: how many of them there are
        dtype: type that products are computed in
        peak: the highest rate that one device was measured to reach in products of that type, in FLOP/s
        earlier_possible: FLOPs that other devices could have computed before these were at work, by account
        price: money for a device-hour; None if it is not known
        currency: label of the money
        accounts: the accounts by name; the head of this file lists them
        joules: energy as the machine reported it; None if it never did
        joules_seconds: device-seconds in which it did
        begun_after: steps that the run had taken when this ledger was begun
        fraction: share of the run that is behind it, 0 to 1; `done` in the file
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"alias_generator": lambda name: _STORED_NAMES.get(name, name)}

    device: str = ""
    devices: _Count = 1
    dtype: str = "float32"
    peak: _Amount = 0.0
    earlier_possible: dict[str, _Amount] = field(default_factory=dict)
    price: _Amount | None = None
    currency: str = "USD"
    accounts: dict[str, Work] = field(default_factory=lambda: {name: Work() for name in (*STEPS, *OVERHEADS)})
    joules: _Amount | None = None
    joules_seconds: _Amount = 0.0
    begun_after: _Count = 0
    fraction: _Amount = 0.0

    # The devices.

    def set_devices(self, device: str, devices: int, dtype: str, peak: float) -> None:
        """Set the devices that the run is on from now on, each with this peak."""
        self.device, self.devices, self.dtype, self.peak = device, devices, dtype, peak
        self.earlier_possible = {name: work.possible_flops for name, work in self.accounts.items()}

    def raise_peak(self, peak: float) -> None:
        """Raise the peak that a device was seen to exceed, and with it what it could have computed so far."""
        if peak <= self.peak:
            return
        for name, work in self.accounts.items():
            earlier = min(self.earlier_possible.get(name, 0.0), work.possible_flops)
            possible = earlier + (work.possible_flops - earlier) * peak / self.peak
            self.accounts[name] = replace(work, possible_flops=possible)
        self.peak = peak

    # Booking.

    def book_step(self, is_taken: bool, tokens: int, flops: Mapping[str, float], seconds: float) -> None:
        """Book a step.

        Args:
            is_taken: whether the step changed the weights
            tokens: its tokens
            flops: FLOPs per token, by part of the network
            seconds: seconds of the clock
        """
        account = "useful" if is_taken else "failed"
        own = {part: tokens * each for part, each in flops.items()}
        self.accounts[account] += Work(1, tokens, own, *self._time(seconds))

    def book_work(self, flops: Mapping[str, float], seconds: float) -> None:
        """Book useful work before the first step: its FLOPs by part, and seconds of the clock."""
        self.accounts["useful"] += Work(0, 0, dict(flops), *self._time(seconds))

    def book_overhead(self, account: Overhead, seconds: float) -> None:
        """Book seconds of the clock in which no step was taken."""
        self.accounts[account] += Work(0, 0, {}, *self._time(seconds))

    def book_energy(self, joules: float | None, seconds: float) -> None:
        """Book the energy of all devices in the last `seconds`; None means that the machine did not report it."""
        if joules is not None:
            self.joules = (self.joules or 0.0) + joules
            self.joules_seconds += seconds * self.devices

    def rewind(self, useful: Work, account: Literal["repeated", "failed"]) -> None:
        """Move the work beyond `useful` to another account: training goes on from the weights that `useful` led to."""
        self.accounts[account] += self.accounts["useful"].beyond(useful)
        self.accounts["useful"] = useful

    def _time(self, seconds: float) -> tuple[float, float]:
        device_seconds = seconds * self.devices
        return device_seconds, device_seconds * self.peak

    # Sums.

    @property
    def useful(self) -> Work:
        """Steps that led to the weights as they are now."""
        return self.accounts["useful"]

    @property
    def work(self) -> Work:
        """All steps: useful, repeated and failed."""
        return sum((self.accounts[name] for name in STEPS), Work())

    @property
    def total(self) -> Work:
        """All accounts."""
        return sum(self.accounts.values(), Work())

    @property
    def device_hours(self) -> float:
        """Hours of all devices on all accounts."""
        return self.total.device_seconds / _HOUR

    @property
    def mfu(self) -> float | None:
        """FLOPs of all steps as a share of what the devices could have computed in the time of these steps."""
        work = self.work
        return work.all_flops / work.possible_flops if work.possible_flops else None

    @property
    def utilization(self) -> float | None:
        """FLOPs of useful steps as a share of what the devices could have computed in all their time."""
        possible = self.total.possible_flops
        return self.useful.all_flops / possible if possible else None

    @property
    def kilowatt_hours(self) -> float | None:
        """Energy as the machine reported it; None if it never did."""
        return None if self.joules is None else self.joules / _KWH

    @property
    def energy_share(self) -> float:
        """The share of the device-hours whose energy is known, 0 to 1."""
        seconds = self.total.device_seconds
        return min(self.joules_seconds / seconds, 1.0) if seconds else 0.0

    @property
    def money(self) -> float | None:
        """Money for all the time of all devices; None if the price is not known."""
        return self.cost_of(self.total.device_seconds)

    def cost_of(self, device_seconds: float) -> float | None:
        """Return the money for so much time of devices; None if the price is not known."""
        return None if self.price is None else device_seconds / _HOUR * self.price

    def estimate(self) -> Estimate | None:
        """Return what the run will have cost at its end if the rest goes as so far without a stop; None before a step.

        The time of steps and of what interrupts them grows with the fraction; start, reference, repeated and
        failed work stay as they are.
        """
        moved = self.useful + self.accounts["failed"]  # both have brought the run nearer to its end
        if not (self.fraction and moved.steps):
            return None
        more = (1 - self.fraction) / self.fraction
        pauses = math.fsum(
            self.accounts[name].device_seconds for name in OVERHEADS if name not in ("start", "reference")
        )
        spent, work = self.total.device_seconds, self.work
        seconds = spent + more * (moved.device_seconds + pauses)
        has_energy = self.kilowatt_hours is not None and self.joules_seconds > 0
        return Estimate(
            tokens=work.tokens + more * moved.tokens,
            flops=work.all_flops + more * moved.all_flops,
            device_hours=seconds / _HOUR,
            energy=(self.joules or 0.0) / self.joules_seconds * seconds / _KWH if has_energy else None,
            money=self.cost_of(seconds),
        )

    # On disk.

    def to_json(self) -> bytes:
        """Return the file's content: the accounts, and their sums for people who read it."""
        estimate, work = self.estimate(), self.work
        sums = {
            "tokens": work.tokens,
            "flops": work.all_flops,
            "mfu": self.mfu,
            "utilization": self.utilization,
            "device_hours": self.device_hours,
            "kilowatt_hours": self.kilowatt_hours,
            "money": self.money,
        }
        accounts = {_STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}
        record = accounts | {"total": sums, "estimate": None if estimate is None else asdict(estimate)}
        return json.dumps(record, indent=1, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes, where: str = LEDGER_FILE) -> Ledger:
        """Read what `to_json` has written.

        Args:
            content: the file's content
            where: name of the file, for messages

        Raises:
            UserError: it is no ledger; the message names the field.
        """
        found = checked(parse_json(content, where, _REMEDY), cls, where, _REMEDY)
        found.accounts = cls().accounts | found.accounts
        return found


def read_ledger(run: Path) -> Ledger | None:
    """Read the ledger in a run's folder; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = run / LEDGER_FILE
    try:
        return Ledger.from_json(read_bytes(path, _REMEDY), str(path))
    except MissingFile:
        return None
