"""Optimizers without the machinery of torch.compile, which PyTorch's own import: 100 MB, and seconds."""

from __future__ import annotations

import inspect

import torch


class EagerOptimizer(torch.optim.Optimizer):
    """A base class, to be named first, whose methods are those of PyTorch before they are wrapped for torch.compile."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(EagerOptimizer, torch.optim.AdamW):
    """PyTorch's AdamW without torch.compile."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
