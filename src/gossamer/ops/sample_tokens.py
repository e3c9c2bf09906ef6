"""Sampling one token from each row of logits, with random numbers that belong to the row and the token.

This is the Gumbel-max trick: with independent G_i from the standard Gumbel distribution, the i that maximizes
l_i / T + G_i is a sample from softmax(l / T). G_i is a function of the row's key and of i alone. Two similar
distributions sampled with the same key therefore mostly give the same token: with probability at least
(1 − d) / (1 + d), where d is their total variation distance (arXiv 2408.07978). This is why drafts are sampled as well,
each with the key of its position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.errors import UserError
from gossamer.ops import native as kernels
from gossamer.ops.checks import check_floats, describe, is_dense
from gossamer.ops.registry import Operation

SAMPLE_TOKENS = Operation("sample_tokens", has_gradient=False)
_LOW_BITS = (1 << 32) - 1


def sample_tokens(logits: Tensor, temperatures: Tensor, keys: Tensor) -> Tensor:
    """Sample one token per row from softmax(logits / temperature). It has no gradient.

    Args:
        logits: [R, V] float32; −∞ excludes a token
        temperatures: [R] float32 on the CPU; 0 takes the most likely token, the first of several equal ones
        keys: [R] int64 on the CPU, from which the random numbers follow

    Returns:
        [R] int64 on the CPU; −1 for a row whose largest logit is not finite.

    Raises:
        UserError: the shapes, dtypes or devices do not fit.
    """
    check_floats("sample_tokens", logits=logits)
    if logits.ndim != 2 or not logits.shape[1] or logits.dtype != torch.float32:
        raise UserError(f"sample_tokens: logits must be [rows, vocabulary] of float32, not {describe(logits)}")
    check_sampling("sample_tokens", temperatures, keys, logits.shape[:1])
    tokens: Tensor = SAMPLE_TOKENS(logits.device, logits, temperatures, keys)
    return tokens


def check_sampling(operation: str, temperatures: Tensor, keys: Tensor, sizes: tuple[int, ...]) -> None:
    """Refuse temperatures that are not of shape `sizes[:1]` and keys that are not of shape `sizes`.

    Raises:
        UserError: the message names the argument and its shape, dtype and device.
    """
    for name, x, expected, dtype in (
        ("temperatures", temperatures, sizes[:1], torch.float32),
        ("keys", keys, sizes, torch.int64),
    ):
        fits = is_dense(x) and x.shape == torch.Size(expected) and x.dtype == dtype
        if not fits or x.device.type != "cpu" or not x.is_contiguous():
            required = f"{list(expected)} of {str(dtype).removeprefix('torch.')} on the CPU and contiguous"
            raise UserError(f"{operation}: {name} must be {required}, not {describe(x)}")


def reference(logits: Tensor, temperatures: Tensor, keys: Tensor) -> Tensor:
    """Sample by the Gumbel-max trick as it is written, in float64."""
    logits, temperatures, keys = logits.cpu().double(), temperatures.double(), keys.cpu()
    largest = logits.amax(-1)
    tokens = logits.argmax(-1)
    random = temperatures > 0
    if bool(random.any()):
        scores = (logits[random] - largest[random, None]) / temperatures[random, None]
        tokens[random] = (scores + gumbel_noise(keys[random], logits.shape[1])).argmax(-1)
    return tokens.where(largest.isfinite(), -1)


def gumbel_noise(keys: Tensor, count: int) -> Tensor:
    """Compute G_i = −ln E_i with E_i = −ln(1 − w_i) and w_i uniform in (0, 1): [R] → [R, count] float64."""
    ids = torch.arange(count, device=keys.device)
    low, high = keys[:, None] & _LOW_BITS, (keys[:, None] >> 32) & _LOW_BITS
    uniform = (_hash(_hash(ids ^ low) ^ high) >> 1).double().add(0.5) / 2**31
    return -(-torch.log1p(-uniform)).log()


def _hash(x: Tensor) -> Tensor:
    """Permute the numbers below 2³² so that they look random (C. Wellons' hash prospector, `lowbias32`)."""
    x = (x ^ x >> 16) * 0x7FEB352D & _LOW_BITS
    x = (x ^ x >> 15) * 0x846CA68B & _LOW_BITS
    return x ^ x >> 16


def native(logits: Tensor, temperatures: Tensor, keys: Tensor) -> Tensor:
    """Sample all rows in one call of ops/native/sample.cpp."""
    tokens = torch.empty(len(logits), dtype=torch.int64)
    kernels.call("sample_tokens", logits.contiguous(), temperatures, keys, tokens, *logits.shape)
    return tokens


SAMPLE_TOKENS.register("native", native, kernels.obstacle)
SAMPLE_TOKENS.register("reference", reference)
