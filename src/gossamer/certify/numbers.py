"""Which types a device computes in, found out by computing, and whether that is what it claims."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gossamer import device as devices
from gossamer.certify.checks import Check, first_line, judge, named
from gossamer.certify.exactness import largest_error

CPU = torch.device("cpu")
# Errors of a product over 61 numbers, of the largest result.
_ALLOWED = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1e-2}


def claimed(device: torch.device) -> dict[torch.dtype, str]:
    """Types that certification is about, each with what the device lacks of it by its flags, or ""."""
    can = devices.capabilities(device)
    # A CPU computes in bfloat16 anyhow, if slowly.
    bf16 = "" if can.bf16 or not devices.is_accelerator(device) else "no products in bfloat16, by the device's flags"
    fp64 = "" if can.fp64 else "no float64, by the device's flags"
    return {torch.float32: "", torch.bfloat16: bf16, torch.float64: fp64}


def check_numbers(device: torch.device) -> Iterator[Check]:
    """A product, its rounding, and the rules by which types are mixed, for each type that the device claims."""
    for dtype, lacking in claimed(device).items():
        name = f"products in {named(dtype)}"
        yield Check("numbers", name, "not run", lacking) if lacking else _product(name, dtype, device)
    yield _large_indices(device)


def _product(name: str, dtype: torch.dtype, device: torch.device) -> Check:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((33, 61), (61, 17)))
    allowed = _ALLOWED[dtype]
    try:
        product = a.to(device) @ b.to(device)
        mixed = product + torch.ones((), device=device)  # a float32 scalar must not widen a narrower tensor
        if (product.dtype, mixed.dtype) != (dtype, dtype):
            wrong = next(found.dtype for found in (product, mixed) if found.dtype != dtype)
            return Check("numbers", name, "fail", f"gives {named(wrong)}", where="the plug-in's rules of promotion")
        return judge("numbers", name, largest_error(product, a.double() @ b.double()), allowed, dtype=named(dtype))
    except Exception as error:
        return Check("numbers", name, "fail", first_line(error), dtype=named(dtype), where="the plug-in's aten::mm")


def _large_indices(device: torch.device) -> Check:
    """Integers of 64 bits, which token ids and the order of experts' tokens are."""
    name, numbers = "integers of 64 bits", torch.tensor([2**40 + 3, -5, 2**33])
    try:
        found = (numbers.to(device) * 3 + 1).sort().values.cpu()
    except Exception as error:
        return Check("numbers", name, "fail", first_line(error), where="the plug-in's int64 operators")
    right = torch.equal(found, (numbers * 3 + 1).sort().values)
    message = "" if right else f"gives {found.tolist()}"
    return Check("numbers", name, "pass" if right else "fail", message, where="" if right else "int64 operators")


def checked_dtypes(device: torch.device) -> list[torch.dtype]:
    """Types that operations are checked in there."""
    return [dtype for dtype, lacking in claimed(device).items() if not lacking]
