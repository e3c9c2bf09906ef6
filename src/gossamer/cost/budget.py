"""A budget: how much of the clock, of money or of arithmetic a run may spend, as a user writes it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from gossamer.errors import FieldError, did_you_mean

__all__ = ["MIN_FLOPS", "MIN_SECONDS", "Budget", "parse_budget"]

MIN_SECONDS = 20.0
"""The smallest budget of time: loading PyTorch, reading the text and measuring the device take most of it."""

MIN_FLOPS = 2e11
"""The smallest budget of arithmetic: a few dozen steps of the smallest network."""

_SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400}
_SECONDS |= {"day": 86400, "w": 604800, "week": 604800}
_FLOPS = {"flop": 1.0, "mflop": 1e6, "gflop": 1e9, "tflop": 1e12, "pflop": 1e15, "eflop": 1e18, "zflop": 1e21}
_AMOUNT = re.compile(r"(\d+(?:\.\d*)?(?:e[+-]?\d+(?![a-z]*\d))?)\s*([^\W\d]+)\s*", re.IGNORECASE)
_FORMS = "write it as 90s, 10m, 1h30m, 2d, 5usd or 1e17flop"


@dataclass(frozen=True)
class Budget:
    """What a run may spend.

    Attributes:
        text: the budget as the user wrote it
        kind: time (seconds of the clock), money or flops (of training steps)
        amount: number of seconds, amount of money, or number of FLOPs
    """

    text: str
    kind: Literal["time", "money", "flops"]
    amount: float

    def seconds(self, price: float | None, devices: int) -> float | None:
        """Return how many seconds of the clock the run may take; None for a budget of FLOPs.

        Args:
            price: cost of one device for an hour
            devices: number of devices
        """
        if self.kind == "flops":
            return None
        if self.kind == "time":
            return self.amount
        assert price is not None
        return self.amount / price * 3600 / devices


def parse_budget(text: str, price: float | None = None, currency: str = "USD") -> Budget:
    """Read a budget.

    Args:
        text: the budget as a user writes it
        price: cost of one device for an hour, which a budget of money needs; None: not known
        currency: currency of the price, in upper or lower case

    Raises:
        FieldError: the line says what cannot be read, what is missing, or the smallest budget that is of use.
    """
    found = [match.groups() for match in _AMOUNT.finditer(text.strip())]
    if not found or "".join(_AMOUNT.split(text.strip())[::3]):
        raise FieldError("budget", f" {text!r}: no amount with a unit; {_FORMS}")
    amounts = [(float(number), unit.lower()) for number, unit in found]
    budget = _budget(text, amounts, currency)
    if not (math.isfinite(budget.amount) and budget.amount > 0):
        raise FieldError("budget", f" {text!r}: must be a finite amount above 0")
    if budget.kind == "money" and price is None:
        raise FieldError("budget", f" {text!r}: what does an hour of a device cost? --price gives it, in {currency}")
    _require_enough(budget, price, currency)
    return budget


def _budget(text: str, amounts: list[tuple[float, str]], currency: str) -> Budget:
    units = [unit for _, unit in amounts]
    if all(_singular(unit) in _SECONDS for unit in units):
        return Budget(text, "time", math.fsum(number * _SECONDS[_singular(unit)] for number, unit in amounts))
    (number, unit), *more = amounts
    if more:
        raise FieldError("budget", f" {text!r}: only times add up; {_FORMS}")
    if _singular(unit) in _FLOPS:
        return Budget(text, "flops", number * _FLOPS[_singular(unit)])
    if unit == currency.lower():
        return Budget(text, "money", number)
    known = [*_SECONDS, *_FLOPS, currency.lower()]
    hint = (
        did_you_mean(unit, known)
        if len(unit) > 3
        else f"; money is in {currency} here, --training.currency changes that"
    )
    raise FieldError("budget", f" {text!r}: unknown unit {unit!r}{hint}; {_FORMS}")


def _singular(unit: str) -> str:
    return unit if unit == "s" else unit.removesuffix("s")


def _require_enough(budget: Budget, price: float | None, currency: str) -> None:
    seconds = budget.seconds(price, 1)
    if seconds is None:
        if budget.amount < MIN_FLOPS:
            raise FieldError(
                "budget", f" {budget.text!r} is too small to train anything; the least is {MIN_FLOPS:g}flop"
            )
    elif seconds < MIN_SECONDS * (1 - 1e-9):  # rounding: a price of a third falls just short
        least = f"{MIN_SECONDS:g}s"
        if budget.kind == "money":
            assert price is not None
            least = f"{_rounded_up(MIN_SECONDS / 3600 * price)}{currency.lower()} at {price:g} {currency} per hour"
        raise FieldError("budget", f" {budget.text!r} is too small to train anything; the least is {least}")


def _rounded_up(value: float) -> str:
    """The smallest number of two digits that is not less than a value."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{float(f'{math.ceil(value / unit - 1e-9) * unit:.2g}'):g}"
