"""Where a network's numbers stop being finite; this is looked for only when it has happened."""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gossamer.model.causal_lm import CausalLM

NOT_FINITE = "the model's logits are not finite"


class Explanation(NamedTuple):
    """Why logits are not finite.

    Attributes:
        line: one line, for a message
        is_in_weights: whether weights are not finite, so that every request fails
    """

    line: str
    is_in_weights: bool


@torch.no_grad()
def explain_nonfinite(model: CausalLM, ids: Tensor) -> Explanation:
    """Find the layer where numbers stop being finite, and its weights if it is they that are not finite.

    Args:
        model: on its device; it is run once on these tokens
        ids: [T] tokens for which the model gave logits that are not finite
    """
    found: list[str] = []  # names of modules, in the order in which their outputs were not finite

    def check(name: str, module: nn.Module, inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if not found and isinstance(first, Tensor) and first.is_floating_point() and not bool(first.isfinite().all()):
            found.append(name)

    hooks = [module.register_forward_hook(partial(check, name)) for name, module in model.named_modules() if name]
    try:
        model.lm_head(model.hidden_states(ids.unsqueeze(0))[:, -1:])
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return Explanation(f"{NOT_FINITE}; its first {len(ids)} tokens alone do not show where", False)
    name = found[0]
    layer = re.match(r"model\.layers\.(\d+)", name)
    ends = {"model.embed_tokens": "the embedding", "model.norm": "the last norm"}
    place = f"layer {layer[1]}" if layer else ends.get(name, "the output head")
    prefix = layer[0] if layer else name
    # An operation may have read a weight of a module that was never called: all weights of the layer are checked.
    for weight, values in model.named_parameters(remove_duplicate=False):
        if weight.startswith(f"{prefix}.") and (wrong := int((~values.isfinite()).sum())):
            which = f"{wrong} of {values.numel()} numbers of {weight} are NaN or infinite"
            return Explanation(f"{NOT_FINITE} at {place}: {which}", True)
    return Explanation(f"{NOT_FINITE} at {place}: {name} overflows, though its weights are finite", False)
