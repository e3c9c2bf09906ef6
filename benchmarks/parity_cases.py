"""The networks that are compared with transformers, and the function that makes a pair with the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from gossamer.hub.layout import Layout, tensors_in
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import FULL, LINEAR, ModelConfig
from gossamer.model.config_json import MODEL_TYPES

transformers.utils.logging.set_verbosity_error()  # it warns of kernels that a CPU has not

# The parts of a network in a size that takes milliseconds. Sizes differ from one another, so that no two dimensions
# can be taken for each other.
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 24,
    "max_position_embeddings": 512,
    "num_nextn_predict_layers": 0,
}

# What the models of Qwen3.5 and its successors have in common: 1/32 of the released width in all heads together. The
# heads of linear attention are half as many of twice the width, since a norm over four numbers is ill-conditioned.
QWEN3_5_HEADS: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_theta": 1e7,
}
QWEN3_5: dict[str, Any] = {"model_type": "qwen3_5_text", "num_experts": 0}
QWEN3_5_MOE: dict[str, Any] = {
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


@dataclass(frozen=True)
class Case:
    """A network to compare: what differs in it from `TINY`, and what that covers."""

    name: str
    covers: str
    changes: dict[str, Any]

    @property
    def config(self) -> ModelConfig:
        """The configuration of the network."""
        return ModelConfig(**TINY | self.changes)


CASES = [
    Case("released", "full attention in every fourth layer and experts in every layer, as in 80B-A3B", {}),
    Case(
        "interval-2",
        "full attention in every other layer, dense first layer, as many key as value and query heads, kernel size 2",
        {
            "full_attention_interval": 2,
            "mlp_only_layers": [0],
            "linear_num_value_heads": 2,
            "num_key_value_heads": 4,
            "linear_conv_kernel_dim": 2,
        },
    ),
    Case(
        "layer-types",
        "layer types listed one by one, every other dense, 3 value heads per key head, odd head sizes, kernel size 3",
        {
            "num_hidden_layers": 5,
            "layer_types": [FULL, LINEAR, LINEAR, FULL, LINEAR],
            "decoder_sparse_step": 2,
            "linear_num_value_heads": 6,
            "linear_key_head_dim": 7,
            "linear_value_head_dim": 5,
            "linear_conv_kernel_dim": 3,
            "head_dim": 15,
            "partial_rotary_factor": 0.4,
        },
    ),
    Case(
        "dense",
        "no experts, tied embeddings, rotary embedding of half of each head, another base",
        {"num_experts": 0, "tie_word_embeddings": True, "partial_rotary_factor": 0.5, "rope_theta": 1e7},
    ),
    Case(
        "not-renormalized",
        "top-k weights not renormalized, 4 value heads per key head, one key head for all queries, rotary whole heads",
        {
            "norm_topk_prob": False,
            "num_experts_per_tok": 3,
            "linear_num_value_heads": 8,
            "num_key_value_heads": 1,
            "partial_rotary_factor": 1.0,
            "rope_theta": 500.0,
        },
    ),
    Case(
        "biases",
        "biases in attention, one key head, a large ε, every token sent to all experts",
        {
            "attention_bias": True,
            "full_attention_interval": 2,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 3,
            "rms_norm_eps": 1e-2,
            "num_experts": 3,
            "num_experts_per_tok": 3,
        },
    ),
    Case(
        "attention-only",
        "no linear-attention layer, one expert per token",
        {"full_attention_interval": 1, "num_experts_per_tok": 1, "norm_topk_prob": False},
    ),
    Case(
        "linear-only",
        "no full-attention layer, a single layer with experts",
        {"layer_types": [LINEAR] * 3, "num_hidden_layers": 3, "mlp_only_layers": [0, 2]},
    ),
    # Released models of Qwen3.5 to 3.8 at 1/32 of their widths, with fewer experts and one period of four layers.
    Case(
        "qwen3.5-0.8b",
        "dense, tied, 4 query heads per key head, as many value as key heads in linear attention",
        QWEN3_5 | QWEN3_5_HEADS | {"hidden_size": 32, "intermediate_size": 112, "tie_word_embeddings": True},
    ),
    Case(
        "qwen3.5-4b",
        "dense, tied, 4 query heads per key head, 2 value heads per key head in linear attention",
        QWEN3_5
        | QWEN3_5_HEADS
        | {
            "hidden_size": 80,
            "intermediate_size": 288,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "linear_num_value_heads": 16,
            "tie_word_embeddings": True,
        },
    ),
    Case(
        "qwen3.5-27b",
        "dense, 6 query heads per key head, 3 value heads per key head in linear attention",
        QWEN3_5
        | QWEN3_5_HEADS
        | {
            "hidden_size": 160,
            "intermediate_size": 544,
            "num_attention_heads": 24,
            "num_key_value_heads": 4,
            "linear_num_value_heads": 24,
        },
    ),
    Case(
        "qwen3.5-35b-a3b",
        "experts in every layer, 8 query heads per key head, 2 value heads per key head in linear attention",
        QWEN3_5_MOE | QWEN3_5_HEADS | {"num_attention_heads": 16, "linear_num_value_heads": 16},
    ),
    Case(
        "qwen3.5-397b-a17b",
        "experts in every layer, 16 query heads per key head, 4 value heads per key head in linear attention",
        QWEN3_5_MOE
        | QWEN3_5_HEADS
        | {
            "hidden_size": 128,
            "num_attention_heads": 32,
            "linear_num_value_heads": 32,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    Case(
        "qwen3.8-2.4t-a95b",
        "experts in every layer, 16 query heads per key head, 8 value heads per key head in linear attention",
        QWEN3_5_MOE
        | QWEN3_5_HEADS
        | {
            "num_attention_heads": 16,
            "num_key_value_heads": 1,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 16,
        },
    ),
]


def their_network(config: ModelConfig) -> nn.Module:
    """Return a network of transformers' own class, in float32 with random weights."""
    values = config.to_dict()
    network: nn.Module = getattr(transformers, MODEL_TYPES[config.model_type].architecture)(
        transformers.AutoConfig.for_model(**values)
    )
    network.set_experts_implementation("eager")  # their grouped one refuses odd sizes in bfloat16
    return network


def their_layout(config: ModelConfig) -> Layout:
    """Return the layout that the networks of transformers have in memory."""
    return Layout(flat_projections=config.model_type != "qwen3_next", stacked_experts=True, stacked_mtp_experts=True)


def in_their_layout(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters of gossamer's network, or their gradients, under the names and in the order of transformers."""
    layout = their_layout(config)
    return {
        piece.name: piece.read(tensor)
        for name, tensor in tensors.items()
        for piece in layout.pieces(name, tensor.shape, config)
    }


def pair(config: ModelConfig, seed: int = 0) -> tuple[CausalLM, Any]:
    """Return gossamer's network and that of transformers, with the same weights and in float32.

    The weights are larger than initial ones and no norm or gate is at its start value, so that the gradient of every
    parameter is far above rounding noise. Decays are slow, so that states reach far.
    """
    torch.manual_seed(seed)
    theirs = their_network(config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(-4.0, -1.0)
            elif parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=0.2)
    ours = CausalLM(config)
    copy_weights(ours, theirs)
    return ours, theirs


@torch.no_grad()
def copy_weights(ours: CausalLM, theirs: nn.Module) -> None:
    """Give gossamer's network the weights of one of transformers', which has no multi-token-prediction head."""
    stored = theirs.state_dict()
    if ours.config.tie_word_embeddings:
        del stored["lm_head.weight"]
    parts = tensors_in(their_layout(ours.config), ours, ours.config)
    assert stored.keys() == {name for name in parts if not name.startswith("mtp.")}, stored.keys() ^ parts.keys()
    for name, values in stored.items():
        parameter, piece = parts[name]
        piece.write(parameter, 0, values)
