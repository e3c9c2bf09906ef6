"""The gated delta rule token by token, in a few lines of PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def l2norm(x: Tensor) -> Tensor:
    """Compute x · rsqrt(Σ x² + 1e-6) over the last dimension; the ε is added to the sum, not to the mean."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def reference(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None, lengths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Apply the recurrence as it is written; `lengths` are the documents' lengths in tokens."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    repeats = v.shape[2] // q.shape[2]
    q, k = (l2norm(x.to(dtype)).flatten(0, 1).repeat_interleave(repeats, dim=1) for x in (q, k))
    q = q * q.shape[-1] ** -0.5
    values, decay, rate = v.to(dtype).flatten(0, 1), g.to(dtype).flatten(0, 1).exp(), beta.to(dtype).flatten(0, 1)

    outputs, states, token = [], [], 0
    for document, length in enumerate(lengths):
        if initial_state is None:
            state = v.new_zeros(v.shape[2], q.shape[-1], v.shape[3], dtype=dtype)
        else:
            state = initial_state[document].to(dtype)
        for t in range(token, token + length):
            state = decay[t, :, None, None] * state
            delta = rate[t, :, None] * (values[t] - torch.einsum("hkv,hk->hv", state, k[t]))
            state = state + k[t, :, :, None] * delta[:, None, :]
            outputs.append(torch.einsum("hkv,hk->hv", state, q[t]))
        states.append(state)
        token += length
    o = torch.stack(outputs).view(v.shape) if outputs else torch.zeros_like(v, dtype=dtype)
    return o.to(v.dtype), torch.stack(states)
