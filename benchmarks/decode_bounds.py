"""What a machine's own rates allow in decoding: the bytes that a step moves, and the FLOPs of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gossamer.model.config import LINEAR, ModelConfig
from gossamer.model.counts import count


def step_bytes(config: ModelConfig, requests: int, bytes_per_number: int = 4) -> float:
    """Weights and states that a decoding step reads, and writes of states, if experts are chosen evenly.

    An expert is read once, however many of the requests chose it. Keys and values, few after a short prompt, are left
    out.
    """
    parts = [part for part in count(config, 1).parts if part.kind not in ("embedding", "mtp")]
    once = sum(part.active_parameters for part in parts if part.parameters <= part.active_parameters)
    routed = sum(part.parameters for part in parts if part.parameters > part.active_parameters)
    touched = 1 - (1 - config.num_experts_per_tok / config.num_experts) ** requests if routed else 0.0
    heads = config.linear_num_value_heads * config.mixers.count(LINEAR)
    states = 2 * 4 * heads * config.linear_key_head_dim * config.linear_value_head_dim
    return bytes_per_number * (once + touched * routed) + requests * states


def step_rate(config: ModelConfig, requests: int, machine: Mapping[str, Any], bytes_per_number: int = 4) -> float:
    """Tokens a second of so many requests if a step moves its bytes at the machine's copy rate."""
    return float(requests * machine["copy_gbytes"] * 1e9 / step_bytes(config, requests, bytes_per_number))


def prompt_rate(config: ModelConfig, length: int, machine: Mapping[str, Any]) -> float:
    """Tokens a second of a prompt at the machine's GEMM rate; the output head sees the last place alone."""
    flops = sum(part.forward_flops for part in count(config, length).parts if part.kind not in ("head", "mtp"))
    return float(machine["gemm_gflops"] * 1e9 / flops)
