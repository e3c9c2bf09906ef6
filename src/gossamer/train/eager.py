"""Optimizers that leave torch.compile's machinery out: PyTorch's own import it, which takes 100 MB and seconds."""

from __future__ import annotations

import inspect

import torch


class EagerOptimizer(torch.optim.Optimizer):
    """What PyTorch wraps for torch.compile alone, unwrapped. It comes first among a class's bases."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(EagerOptimizer, torch.optim.AdamW):
    """PyTorch's AdamW, eagerly."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
