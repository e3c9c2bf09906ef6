"""A network small enough to check and time every operation of in a moment."""

from collections.abc import Iterator

import pytest
import torch

from gossamer.model.config import ModelConfig


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )


@pytest.fixture(autouse=True)
def subnormals() -> Iterator[None]:
    """What gossamer's own processes set for themselves ends with a test."""
    yield
    torch.set_flush_denormal(False)
