"""The initial values of all weights, in one place.

| parameter | value | source |
|---|---|---|
| linear, expert and embedding weights, conv1d | normal(0, initializer_range) | transformers, Qwen3-Next |
| router | the same, rows of length initializer_range · √hidden | Qwen3-Next: "normalized" (formula not public) |
| biases | 0 | |
| (1 + w) norms | 0 | transformers |
| linear_attn.norm | 1 | transformers |
| dt_bias | 1 | transformers |
| A_log | log of uniform(0.01, 16), sampled in float32 | transformers (Megatron: uniform(1, 16)) |
"""

from __future__ import annotations

import torch
from torch import nn

from gossamer.model.config import ModelConfig
from gossamer.model.deltanet import GatedDeltaNet
from gossamer.model.experts import Experts, Router
from gossamer.model.norm import GatedRMSNorm, RMSNorm


@torch.no_grad()
def initialize(network: nn.Module, config: ModelConfig) -> None:
    """Set every parameter of `network` by the table above, from PyTorch's current random state."""
    std = config.initializer_range
    for module in network.modules():
        match module:
            case RMSNorm():
                module.weight.zero_()
            case GatedRMSNorm():
                module.weight.fill_(1.0)
            case Router():
                nn.init.normal_(module.weight, std=std)
                lengths = module.weight.norm(dim=1, keepdim=True)
                module.weight.mul_(std * config.hidden_size**0.5 / lengths.clamp(min=1e-12))
            case Experts():
                nn.init.normal_(module.gate_up_proj, std=std)
                nn.init.normal_(module.down_proj, std=std)
            case GatedDeltaNet():
                module.dt_bias.fill_(1.0)
                rates = torch.empty(module.value_heads, dtype=torch.float32).uniform_(0.01, 16)
                module.A_log.copy_(rates.log())
            case nn.Linear() | nn.Conv1d():
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    module.bias.zero_()
            case nn.Embedding():
                nn.init.normal_(module.weight, std=std)
