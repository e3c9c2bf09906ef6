"""Numbers as people read them.

Every function takes any value and gives "–" for what is no finite number.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "SIZES",
    "amount",
    "byte_rate",
    "count",
    "days",
    "decimal_size",
    "dollars",
    "duration",
    "energy",
    "flops",
    "hours",
    "human",
    "is_number",
    "money",
    "network_size",
    "network_words",
    "number",
    "percent",
    "scientific",
    "size",
    "size_unit",
]

_LETTERS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_BINARY = ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_DECIMAL = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Counts and plain numbers.


def human(value: float, digits: int = 3) -> str:
    """Write a number in short: 57012345 -> "57M"; 1234 -> "1.23K"; 0.0006 -> "6e-4".

    Args:
        value: the number
        digits: the largest number of significant digits
    """
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
    """Write a number of things: 57012345 -> "57.0M"; small numbers are written in full."""
    if not is_number(value):
        return "–"
    if abs(value) < 10_000 and value == int(value):
        return f"{value:,.0f}"
    for unit, letter in _LETTERS:
        if abs(value) >= 0.9995 * unit:
            return f"{value / unit:#.3g}".rstrip(".") + letter
    return f"{value:.4g}"


def amount(things: int, name: str) -> str:
    """Write how many of a thing there are: "1 step", "1,200 steps"."""
    return f"{things:,} {name}{'' if things == 1 else 's'}"


def number(value: Any, digits: int = 4) -> str:
    """Write a measurement with so many significant digits: 2.24 -> "2.240"."""
    return f"{value:#.{digits}g}".rstrip(".") if is_number(value) else "–"


def percent(share: Any, decimals: int = 0) -> str:
    """Write a share with so many decimal places: 0.814 -> "81%"."""
    return f"{100 * share:.{decimals}f}%" if is_number(share) else "–"


def scientific(value: Any, decimals: int = 1) -> str:
    """Write an error or a tolerance in powers of ten, with so many decimal places: 0.000123 -> "1.2e-04"."""
    return f"{value:.{decimals}e}" if is_number(value) else "–"


# Sizes of networks.

SIZES = ("parameters", "active_parameters", "mtp_parameters", "mtp_active_parameters")
"""The names that records give to the four sizes of a network, in the order in which `network_size` takes them."""


def network_size(parameters: Any, active: Any, mtp_parameters: Any = None, mtp_active: Any = None) -> tuple[str, str]:
    """Write the size of a network, the same everywhere: the number of parameters, and a remark on them.

    An example is "57.1M" with "8.84M active per token; 63.9M and 9.74M with the multi-token-prediction head". Active
    parameters are those that one token passes: of the routed experts only its top k.

    Args:
        parameters: all parameters, those of the multi-token-prediction head included
        active: the active ones, likewise
        mtp_parameters: parameters of the multi-token-prediction head; None if it is not known whether there is one
        mtp_active: the active ones, likewise
    """
    if not (is_number(mtp_parameters) and is_number(mtp_active) and is_number(parameters) and is_number(active)):
        return count(parameters), f"{count(active)} active per token" if is_number(active) else ""
    if not mtp_parameters:
        return count(parameters), f"{count(active)} active per token; no multi-token-prediction head"
    own, own_active = parameters - mtp_parameters, active - mtp_active
    both = f"{count(parameters)} and {count(active)} with the multi-token-prediction head"
    return count(own), f"{count(own_active)} active per token; {both}"


def network_words(*sizes: Any) -> str:
    """Write `network_size` as a part of a sentence: "57.1M parameters, 8.84M active per token; …"."""
    whole, remark = network_size(*sizes)
    return f"{whole} parameters, {remark}" if remark else f"{whole} parameters"


# Times, work, energy and money.


def duration(seconds: Any) -> str:
    """Write a time with its two largest units: 3725 -> "1 h 2 min"."""
    if not is_number(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    parts = [f"{value} {unit}" for value, unit in ((days, "d"), (hour, "h"), (minute, "min"), (second, "s"))]
    first = next(index for index, value in enumerate((days, hour, minute, second)) if value)
    return " ".join(part for part in parts[first : first + 2] if not part.startswith("0 "))


def days(value: Any) -> str:
    """Write a number of days: 1234.5 -> "1,234", 2.345 -> "2.3"."""
    if not is_number(value):
        return "–"
    return f"{value:,.0f}" if value >= 10 else number(value, 2)


def hours(value: Any) -> str:
    """Write hours of devices, not of the clock: 0.01234 -> "0.0123", 1234.5 -> "1,234"."""
    if not is_number(value):
        return "–"
    return f"{value:,.0f}" if value >= 1000 else _plain(value, 3)


def flops(value: Any) -> str:
    """Write a number of floating-point operations: 9.83e12 -> "9.83 TFLOP"."""
    if not is_number(value):
        return "–"
    power = min(max(int(math.log10(value)) // 3, 0), 8) if value >= 1 else 0
    return f"{number(value / 1000**power, 3)} {('', 'K', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y')[power]}FLOP"


def energy(kilowatt_hours: Any) -> str:
    """Write an energy: 0.0123 -> "12.3 Wh", 12.3 -> "12.3 kWh", 12345 -> "12.3 MWh"."""
    if not is_number(kilowatt_hours):
        return "–"
    if kilowatt_hours >= 1000:
        megawatt_hours = kilowatt_hours / 1000
        return f"{f'{megawatt_hours:,.0f}' if megawatt_hours >= 100 else _plain(megawatt_hours, 3)} MWh"
    return f"{hours(kilowatt_hours)} kWh" if kilowatt_hours >= 1 else f"{_plain(1000 * kilowatt_hours, 3)} Wh"


def money(value: Any, currency: str = "") -> str:
    """Write an amount of money with its label: 1234.5 -> "1,234.50 USD"; less than a tenth with two digits."""
    if not is_number(value):
        return "–"
    return f"{f'{value:,.2f}' if value >= 0.1 else _plain(value, 2)} {currency}".rstrip()


def dollars(value: Any) -> str:
    """Write an amount of US dollars in short: 1340000 -> "$1.34M", 2.5 -> "$2.50"."""
    if not is_number(value):
        return "–"
    return f"${human(value)}" if value >= 1000 else f"${money(value)}"


# Sizes of memory and files.


def size_unit(largest: float) -> tuple[int, str]:
    """Return the unit in which to write sizes up to so many bytes: its bytes and its name."""
    return next(((unit, name) for unit, name in _BINARY if largest >= unit), _BINARY[-1])


def size(value: Any) -> str:
    """Write a size of memory in bytes: 1610612736 -> "1.50 GiB"."""
    if not is_number(value):
        return "–"
    unit, name = size_unit(value)
    return f"{_three_digits(value / unit)} {name}"


def decimal_size(num_bytes: Any) -> str:
    """Write a size of files, or of chips as their makers state it: "1 byte", "400 bytes", "1.2 kB", "83 GB"."""
    if not is_number(num_bytes):
        return "–"
    for unit, name in _DECIMAL:
        if num_bytes >= unit:
            value = num_bytes / unit
            return f"{value:.0f} {name}" if value >= 10 else f"{value:.1f} {name}"
    return amount(round(num_bytes), "byte")


def byte_rate(bytes_per_second: Any) -> str:
    """Write a bandwidth: 4.32e12 -> "4.32 TB/s", 1.5e9 -> "1.50 GB/s"."""
    if not is_number(bytes_per_second):
        return "–"
    unit, name = next(((unit, name) for unit, name in _DECIMAL if bytes_per_second >= unit), _DECIMAL[-1])
    return f"{_three_digits(bytes_per_second / unit)} {name}/s"


def _three_digits(value: float) -> str:
    return number(value, 3) if value < 999.5 else f"{value:,.0f}"
