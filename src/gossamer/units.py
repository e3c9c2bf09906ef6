"""Figures written for people. All take any value and give "–" for what is no finite number."""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "amount",
    "count",
    "duration",
    "energy",
    "flops",
    "hours",
    "human",
    "known",
    "money",
    "network_size",
    "network_words",
    "number",
    "percent",
    "size",
    "size_unit",
]

_LETTERS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def known(value: Any) -> bool:
    """Whether a value is a finite number, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def human(value: float, digits: int = 3) -> str:
    """Write a number in short, with so many digits at most: 57012345 -> "57M"; 1234 -> "1.23K"; 0.0006 -> "6e-4"."""
    for unit, letter in _LETTERS:
        if abs(value) >= (1 - 0.5 * 10**-digits) * unit:  # 999,999 rounds to 1M, not to 1000K
            return _plain(value / unit, digits) + letter
    return _plain(value, digits + 1)


def _plain(value: float, digits: int) -> str:
    if 0 < abs(value) < 1e-3:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:.{digits}g}"


def count(value: Any) -> str:
    """Write a number of things: 57012345 -> "57.0M", small ones in full."""
    if not known(value):
        return "–"
    if abs(value) < 10_000 and value == int(value):
        return f"{value:,.0f}"
    for unit, letter in _LETTERS:
        if abs(value) >= 0.9995 * unit:
            return f"{value / unit:#.3g}".rstrip(".") + letter
    return f"{value:.4g}"


def network_size(parameters: Any, active: Any, mtp_parameters: Any = None, mtp_active: Any = None) -> tuple[str, str]:
    """A network's size in words, the same wherever it is told: how many parameters, and what there is to say of them.

    "57.1M" and "8.84M active a token; 63.9M and 9.74M with the multi-token-prediction head". Active are those that one
    token passes, of the routed experts only the chosen ones.

    Args:
        parameters: all of them, with the head
        active: likewise
        mtp_parameters: those of the multi-token-prediction head; None: it is not known whether there is one
        mtp_active: likewise
    """
    if not (known(mtp_parameters) and known(mtp_active) and known(parameters) and known(active)):
        return count(parameters), f"{count(active)} active a token" if known(active) else ""
    if not mtp_parameters:
        return count(parameters), f"{count(active)} active a token; no multi-token-prediction head"
    own, own_active = parameters - mtp_parameters, active - mtp_active
    both = f"{count(parameters)} and {count(active)} with the multi-token-prediction head"
    return count(own), f"{count(own_active)} active a token; {both}"


def network_words(*sizes: Any) -> str:
    """`network_size` as a part of a sentence: "57.1M parameters, 8.84M active a token; …"."""
    whole, remark = network_size(*sizes)
    return f"{whole} parameters, {remark}" if remark else f"{whole} parameters"


def amount(things: int, name: str) -> str:
    """Write how many of a thing there are: "1 step", "1,200 steps"."""
    return f"{things:,} {name}{'' if things == 1 else 's'}"


def number(value: Any, digits: int = 4) -> str:
    """Write a measurement with so many significant digits."""
    return f"{value:#.{digits}g}".rstrip(".") if known(value) else "–"


def percent(share: Any) -> str:
    """Write a share: 0.814 -> "81%"."""
    return f"{100 * share:.0f}%" if known(share) else "–"


def duration(seconds: Any) -> str:
    """Write a time with its two largest units: 3725 -> "1 h 2 min"."""
    if not known(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    parts = [f"{value} {unit}" for value, unit in ((days, "d"), (hour, "h"), (minute, "min"), (second, "s"))]
    first = next(index for index, value in enumerate((days, hour, minute, second)) if value)
    return " ".join(part for part in parts[first : first + 2] if not part.startswith("0 "))


def flops(value: Any) -> str:
    """Write a number of floating-point operations: 9.83e12 -> "9.83 TFLOP"."""
    if not known(value):
        return "–"
    power = min(max(int(math.log10(value)) // 3, 0), 8) if value >= 1 else 0
    return f"{number(value / 1000**power, 3)} {('', 'K', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y')[power]}FLOP"


def hours(value: Any) -> str:
    """Write hours of devices, not as a time of the clock: 0.01234 -> "0.0123", 1234.5 -> "1,234"."""
    if not known(value):
        return "–"
    return f"{value:,.0f}" if value >= 1000 else _plain(value, 3)


def energy(kilowatt_hours: Any) -> str:
    """Write an energy: 0.0123 -> "12.3 Wh", 12.3 -> "12.3 kWh"."""
    if not known(kilowatt_hours):
        return "–"
    return f"{hours(kilowatt_hours)} kWh" if kilowatt_hours >= 1 else f"{_plain(1000 * kilowatt_hours, 3)} Wh"


def money(value: Any, currency: str = "") -> str:
    """Write an amount of money with its label: 1234.5 -> "1,234.50 USD"; less than a tenth with two digits."""
    if not known(value):
        return "–"
    return f"{f'{value:,.2f}' if value >= 0.1 else _plain(value, 2)} {currency}".rstrip()


def size_unit(most: float) -> tuple[int, str]:
    """The unit in which to write sizes up to so many bytes: its bytes and its name."""
    return next(((unit, name) for unit, name in ((2**30, "GiB"), (2**20, "MiB")) if most >= unit), (2**10, "KiB"))


def size(value: Any) -> str:
    """Write a size in bytes: 1610612736 -> "1.50 GiB"."""
    if not known(value):
        return "–"
    unit, name = size_unit(value)
    return f"{number(value / unit, 3)} {name}"
