"""A whole network on a device beside the float64 reference on the CPU: losses, gradients, and token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from gossamer import device as devices
from gossamer import ops
from gossamer.certify import network
from gossamer.certify.checks import Check, failed, first_line, judge, named
from gossamer.certify.decoding import decode_in_parts
from gossamer.certify.exactness import largest_error
from gossamer.certify.shadow import culprit
from gossamer.model.causal_lm import CausalLM

CPU = torch.device("cpu")
# Of a loss; of a gradient: the length of the difference over the gradient's own, or a thousandth of all gradients'
# together, since where sums cancel nothing is left but rounding. Seen on a CPU: 1e-7 and 4e-6, and with products in
# bfloat16 2e-5 and 6e-2, where a token or two also go to another expert.
LOSS = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
GRADIENT = {torch.float32: 1e-4, torch.bfloat16: 0.25}
SHARE = 1e-3
LOGITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
LOSSES = ("loss", "mtp_loss", "aux_loss")
_WHERE = "the operator census, and src/gossamer/model"


def check_model(device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterator[Check]:
    """Losses and gradients of one packed batch, and decoding, with products computed in each of these types."""
    for dtype in dtypes:
        yield from _losses_and_gradients(device, dtype)
        yield _decoding(device, dtype)


def _losses_and_gradients(device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    expected = _reference()

    def run() -> dict[str, Tensor]:
        return gradients(network.network(device), device, dtype)

    try:
        found = {name: value.cpu().double() for name, value in run().items()}
    except Exception as error:
        message = f"{first_line(error)}{culprit(run, device)}"
        yield Check("network", "losses and gradients", "fail", message, named(dtype), where=_WHERE)
        return
    checks = []
    for name in LOSSES:
        off = largest_error(found[name], expected[name])
        checks.append(judge("network", name, off, LOSS[dtype], where=_WHERE, dtype=named(dtype)))
    worst, off = _worst_gradient(found, expected)
    message = f"the gradient of {worst} is off by {off:.1e} of its length, allowed {GRADIENT[dtype]:.0e}"
    checks.append(judge("network", "gradients", off, GRADIENT[dtype], message, where=_WHERE, dtype=named(dtype)))
    blamed = culprit(run, device) if failed(checks) else ""
    for check in checks:
        yield check if check.status == "pass" else replace(check, message=check.message + blamed)


def _worst_gradient(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[str, float]:
    lengths = {name: float(want.norm()) for name, want in expected.items() if name not in LOSSES}
    least = SHARE * math.hypot(*lengths.values())
    errors = {
        name: float((found[name] - expected[name]).norm()) / max(length, least) for name, length in lengths.items()
    }
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return worst, errors[worst]


def gradients(model: CausalLM, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The losses of one batch and the gradient of every parameter, products computed in `dtype`."""
    batch = network.batches(1)[0]
    with devices.autocast(device, dtype):
        out = model(batch.input_ids.to(device), labels=batch.labels.to(device), cu_seqlens=batch.cu_seqlens)
    losses = {"loss": out.loss, "mtp_loss": out.mtp_loss, "aux_loss": out.aux_loss}
    torch.stack(list(losses.values())).sum().backward()
    found = {name: loss.detach() for name, loss in losses.items()}
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@lru_cache
def _reference() -> dict[str, Tensor]:
    with ops.forced(**dict.fromkeys(ops.OPERATIONS, "reference")):
        return gradients(network.network(CPU, torch.float64), CPU, torch.float32)


def _decoding(device: torch.device, dtype: torch.dtype) -> Check:
    """A prompt, then token by token from the state, against all tokens at once in the reference."""
    ids = network.batches(1)[0].input_ids[:1, :24]
    with torch.no_grad(), ops.forced(**dict.fromkeys(ops.OPERATIONS, "reference")):
        expected = network.network(CPU, torch.float64)(ids).logits

    def run() -> Tensor:
        return decode_in_parts(network.network(device), ids, [17, *[1] * 7])

    name = "decoding token by token"
    try:
        found = run()
    except Exception as error:
        return Check("network", name, "fail", f"{first_line(error)}{culprit(run, device)}", named(dtype), where=_WHERE)
    off = largest_error(found, expected)
    check = judge("network", name, off, LOGITS[dtype], where="src/gossamer/model/decode", dtype=named(dtype))
    return check if check.status == "pass" else replace(check, message=check.message + culprit(run, device))
