"""A CPU that computes an operator wrongly in float32: its float64, which it is compared with, stays right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map


class Faulty(TorchDispatchMode):
    """Spoils what one operator gives wherever float32 goes in.

    Args:
        operator: such as `aten::rsqrt`
        spoil: from a right result to a wrong one; or an exception that is raised instead
    """

    def __init__(self, operator: str, spoil: Callable[[torch.Tensor], torch.Tensor] | Exception) -> None:
        super().__init__()
        self.operator, self.spoil = operator, spoil

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        narrow = any(x.dtype == torch.float32 and not x.is_meta for x in tensors)
        if func.name() != self.operator or not narrow:
            return func(*args, **(kwargs or {}))
        if isinstance(self.spoil, Exception):
            raise self.spoil
        spoil = self.spoil
        out = func(*args, **(kwargs or {}))
        return tree_map(lambda x: spoil(x) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, out)
