"""Decoding with the state cache."""

import pytest
import torch

from gossamer.errors import UserError
from gossamer.infer.sample import generate
from gossamer.infer.sampler import Sampling
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        initializer_range=0.2, max_position_embeddings=128,
    )  # fmt: skip
    return CausalLM(config).eval()


def test_greedy_tokens_are_those_of_the_full_forward(model):
    prompt = [3, 1, 4, 1, 5]
    made = list(generate(model, prompt, 90, Sampling(temperature=0), seed=0))
    with torch.no_grad():
        logits = model(torch.tensor([prompt + made])).logits[0]
    assert made == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_the_same_seed_makes_the_same_text_whatever_was_drawn_before(model):
    first = list(generate(model, [1], 20, Sampling(), seed=4))
    torch.rand(7)
    assert list(generate(model, [1], 20, Sampling(), seed=4)) == first
    assert list(generate(model, [1], 20, Sampling(), seed=5)) != first


def test_it_ends_before_the_stop_token(model):
    made = list(generate(model, [1], 40, Sampling(), seed=0))
    stop = made[10]
    assert list(generate(model, [1], 40, Sampling(), seed=0, stop=stop)) == made[: made.index(stop)]


def test_text_longer_than_the_model_is_meant_for_is_refused(model):
    with pytest.raises(UserError, match="128"):
        list(generate(model, [1] * 100, 29, Sampling(), seed=0))
