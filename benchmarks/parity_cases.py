"""The networks that are compared with transformers, and the function that makes a pair with the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import FULL, LINEAR, ModelConfig

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
]


def pair(config: ModelConfig, seed: int = 0) -> tuple[CausalLM, Qwen3NextForCausalLM]:
    """Return gossamer's network and that of transformers, with the same weights and in float32.

    The weights are larger than initial ones and no norm or gate is at its start value, so that the gradient of every
    parameter is far above rounding noise. Decays are slow, so that states reach far.
    """
    torch.manual_seed(seed)
    theirs = Qwen3NextForCausalLM(Qwen3NextConfig(**config.to_dict()))
    theirs.set_experts_implementation("eager")  # their grouped one refuses odd sizes in bfloat16
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(-4.0, -1.0)
            elif parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=0.2)
    ours = CausalLM(config)
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("mtp.") for name in missing), (missing, unexpected)
    return ours, theirs
