"""Quantized weights: a network's matrices in int8, a quarter of the bytes that decoding on a CPU spends its time on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer import device as devices
from gossamer.model.causal_lm import CausalLM
from gossamer.model.experts import Experts
from gossamer.ops.matrix import Int8Matrix

# Small layers whose results are passed through a steep function.
_NOT_QUANTIZED = ("shared_expert_gate", "in_proj_ba")


@torch.no_grad()
def quantize_to_int8(model: CausalLM) -> dict[Tensor, Int8Matrix]:
    """Round a model's matrices to 255 steps a row, in place.

    These are the rows of every projection, of the experts and of the output head. Routers, gates, convolutions, norms
    and embeddings stay as they are, except for an embedding that is the output head. A row's scale is its largest
    magnitude over 127.

    Returns:
        The rounded parameters with their int8 numbers and scales.
    """
    quantized: dict[Tensor, Int8Matrix] = {}
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            parameters: list[Tensor] = [module.gate_up_proj, module.down_proj]
        elif isinstance(module, nn.Linear) and not name.endswith(_NOT_QUANTIZED):
            parameters = [module.weight]
        else:
            continue
        for parameter in parameters:
            if parameter not in quantized:
                quantized[parameter] = _quantize(parameter)
                values, scales = quantized[parameter]
                # A narrower type does not hold the rounded numbers.
                parameter.data = parameter.to(devices.hidden_dtype(parameter.device, parameter.dtype))
                torch.mul(values, scales.unsqueeze(-1), out=parameter.data)
    return quantized


def _quantize(weight: Tensor) -> Int8Matrix:
    wide = weight.float()
    scales = wide.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return Int8Matrix((wide / scales.unsqueeze(-1)).round().to(torch.int8), scales)
