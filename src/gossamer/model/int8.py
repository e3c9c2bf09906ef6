"""A network's matrices in int8: a quarter of the bytes, which is what decoding on a CPU takes its time to read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.model.causal_lm import CausalLM
from gossamer.model.experts import Experts
from gossamer.ops.decode_layers.layers import Int8

_KEPT = ("shared_expert_gate", "in_proj_ba")  # small, and what they say is passed through a steep function


@torch.no_grad()
def round_to_int8(model: CausalLM) -> dict[Tensor, Int8]:
    """Round matrices to 255 steps a row, in place, and give them as such.

    The rows of every projection, expert and of the output head; routers, gates, convolutions, norms and embeddings stay
    (but for an embedding that is the output head). A row's scale is its largest magnitude over 127.
    """
    rounded: dict[Tensor, Int8] = {}
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            parameters: list[Tensor] = [module.gate_up_proj, module.down_proj]
        elif isinstance(module, nn.Linear) and not name.endswith(_KEPT):
            parameters = [module.weight]
        else:
            continue
        for parameter in parameters:
            if parameter not in rounded:
                rounded[parameter] = _rounded(parameter)
                parameter.copy_(rounded[parameter].values * rounded[parameter].scales.unsqueeze(-1))
    return rounded


def _rounded(weight: Tensor) -> Int8:
    wide = weight.float()
    scales = wide.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return Int8((wide / scales.unsqueeze(-1)).round().to(torch.int8), scales)
