"""Inputs of the operations that hold the output head, and the largest tensor that they make."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from exactness import Inputs, normal, seeds
from gossamer.ops.linear_cross_entropy import IGNORED


def inputs_of(tokens: int = 7, vocab: int = 11, hidden: int = 5, ignored: float = 0.3, seed: int = 0) -> Inputs:
    """Random inputs with a share of labels that are not predicted."""
    random, generator = normal(seed), torch.Generator().manual_seed(seed)
    labels = torch.randint(vocab, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = IGNORED
    return {"hidden": random(tokens, hidden), "weight": random(vocab, hidden), "labels": labels}


@st.composite
def problems(draw: st.DrawFn) -> Inputs:
    return inputs_of(
        tokens=draw(st.integers(0, 20)),
        vocab=draw(st.integers(1, 40)),
        hidden=draw(st.integers(1, 9)),
        ignored=draw(st.sampled_from([0.0, 0.3, 1.0])),
        seed=draw(seeds),
    )


class LargestTensor(TorchDispatchMode):
    """Records the size in bytes of the largest storage that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.bytes = max([self.bytes, *sizes])
        return result
