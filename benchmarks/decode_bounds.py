"""The bounds that a machine's own rates set to decoding: the bytes that a step moves, and the FLOPs of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gossamer.cost.network import count_network
from gossamer.model.config import LINEAR, ModelConfig


def step_bytes(config: ModelConfig, requests: int, bytes_per_number: int = 4) -> float:
    """Return the bytes of weights and states that a decoding step reads, and of states that it writes.

    Experts are assumed to be used evenly, and an expert is read once, however many requests use it. Keys and values,
    few after a short prompt, are left out.

    Args:
        config: the network
        requests: requests that are decoded together
        bytes_per_number: bytes of a number in the weights
    """
    parts = [part for part in count_network(config, 1).parts if part.kind not in ("embedding", "mtp")]
    once = sum(part.active_parameters for part in parts if part.parameters <= part.active_parameters)
    routed = sum(part.parameters for part in parts if part.parameters > part.active_parameters)
    touched = 1 - (1 - config.num_experts_per_tok / config.num_experts) ** requests if routed else 0.0
    heads = config.linear_num_value_heads * config.mixers.count(LINEAR)
    states = 2 * 4 * heads * config.linear_key_head_dim * config.linear_value_head_dim
    return bytes_per_number * (once + touched * routed) + requests * states


def step_rate(config: ModelConfig, requests: int, machine: Mapping[str, Any], bytes_per_number: int = 4) -> float:
    """Return the tokens per second of so many requests if a step moves its bytes at the machine's copy rate."""
    return float(requests * machine["copy_gbytes"] * 1e9 / step_bytes(config, requests, bytes_per_number))


def prompt_rate(config: ModelConfig, length: int, machine: Mapping[str, Any]) -> float:
    """Return the tokens per second of a prompt at the machine's GEMM rate; the head sees the last token alone."""
    flops = sum(part.forward_flops for part in count_network(config, length).parts if part.kind not in ("head", "mtp"))
    return float(machine["gemm_gflops"] * 1e9 / flops)
