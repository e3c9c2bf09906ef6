"""A family of networks with a single dial, the width, from which layers, heads and experts follow.

Depth grows by a group of four layers, three linear and one of full attention, each time the width doubles; experts
double with it, so that the network becomes sparser as it grows, as from `nano` to the released 80B. At 128 it is the
demo recipe's network, at 2048 it is as wide as the released one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

from gossamer.cost.network import count_network
from gossamer.model.config import ModelConfig

__all__ = ["DIMENSIONS", "WIDTHS", "sized", "trunk_parameters"]

WIDTHS = (64, 96, 128, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048)
"""The widths among which a budget chooses."""


def sized(base: ModelConfig, width: int) -> ModelConfig:
    """Return the network of this width; what has no size, such as `rope_theta`, is that of the base."""
    return replace(base, **_dimensions(width))


def _dimensions(width: int) -> dict[str, Any]:
    doublings = math.floor(math.log2(width / 128))
    head_dim = 64 if width % 64 == 0 and width >= 128 else 32
    heads = width // head_dim
    wide = width >= 384
    value_heads = width // 32 if wide else 4
    linear_dim = 64 if wide else width // 4
    return dict(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=4 * max(1, math.ceil(math.log2(width / 128))),
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 if heads % 2 == 0 and wide else 1,
        head_dim=head_dim,
        partial_rotary_factor=0.25,
        layer_types=None,
        full_attention_interval=4,
        linear_num_key_heads=value_heads // 2,
        linear_num_value_heads=value_heads,
        linear_key_head_dim=linear_dim,
        linear_value_head_dim=linear_dim,
        num_experts=8 if doublings < 0 else 16 * 2**doublings,
        num_experts_per_tok=4 if wide else 2,
        moe_intermediate_size=max(min(width // 2, 128), width // 4),
        shared_expert_intermediate_size=max(min(width // 2, 128), width // 4),
        mlp_only_layers=(),
        decoder_sparse_step=1,
    )


DIMENSIONS = frozenset(_dimensions(WIDTHS[0]))
"""The keys of a configuration that the width decides."""


@lru_cache
def trunk_parameters(config: ModelConfig) -> int:
    """Return the parameters that a token passes in the layers: no embedding, head or multi-token prediction."""
    parts = count_network(config).parts
    return sum(part.active_parameters for part in parts if part.kind not in ("embedding", "head", "mtp"))
