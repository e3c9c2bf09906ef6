"""A sample of the vocabulary: what is in it, and that the loss over it is right in the mean."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gossamer import ops
from gossamer.model.causal_lm import CausalLM
from gossamer.model.config import ModelConfig
from gossamer.model.sampled_vocabulary import MIN_SAMPLED_FRACTION, SampledVocabulary, sample_vocabulary
from gossamer.ops.linear_cross_entropy import IGNORED


@given(
    labels=st.lists(st.just(IGNORED) | st.integers(0, 39), max_size=60),
    size=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
def test_what_occurs_and_a_few_of_the_others(labels: list[int], size: int, seed: int) -> None:
    torch.manual_seed(seed)
    found = sample_vocabulary(torch.tensor(labels, dtype=torch.int64), 40, size)
    occurring = {label for label in labels if label >= 0}
    others = 40 - len(occurring)
    drawn = max(size - len(occurring), math.ceil(MIN_SAMPLED_FRACTION * size))
    if found is None:
        assert drawn >= others
        return
    tokens = found.tokens.tolist()
    assert tokens == sorted(set(tokens)) and occurring <= set(tokens) and len(tokens) == len(occurring) + drawn
    counts = dict(zip(tokens, found.log_counts.exp().tolist(), strict=True))
    assert all(counts[token] == 1 for token in occurring)
    assert sum(counts.values()) == pytest.approx(40), "together they stand for the whole vocabulary"


def losses(hidden: Tensor, head: Tensor, labels: Tensor, size: int, draws: int) -> list[float]:
    found = []
    for _ in range(draws):
        vocabulary = sample_vocabulary(labels, len(head), size)
        assert vocabulary is not None
        found.append(float(ops.linear_cross_entropy(hidden, *vocabulary.select(head, labels))))
    return found


def test_the_sum_under_the_logarithm_is_right_in_the_mean() -> None:
    """Of one token, exp(loss + its logit) is that sum."""
    torch.manual_seed(0)
    hidden, head, labels = torch.randn(1, 8), torch.randn(60, 8) / 2, torch.tensor([7])
    logit = float(hidden[0] @ head[7])
    sums = torch.tensor(losses(hidden, head, labels, size=12, draws=4000)).add(logit).exp()
    expected = float((hidden @ head.T).exp().sum())
    error = float(sums.std()) / len(sums) ** 0.5
    assert float(sums.mean()) == pytest.approx(expected, abs=4 * error) and error < 0.02 * expected


def test_every_loss_of_a_network_goes_through_it() -> None:
    """That of the head for further tokens, too: a sample of everything changes nothing."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        linear_num_key_heads=1, linear_num_value_heads=1, linear_key_head_dim=8, linear_value_head_dim=8,
        num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8,
    )  # fmt: skip
    model, ids = CausalLM(config), torch.randint(20, (2, 30))
    everything = SampledVocabulary(torch.arange(50), torch.zeros(50))
    outs = [model(ids, labels=ids, vocabulary=vocabulary) for vocabulary in (None, everything)]
    torch.testing.assert_close(outs[0].loss, outs[1].loss)
    torch.testing.assert_close(outs[0].mtp_loss, outs[1].mtp_loss)
    gradients = [torch.autograd.grad(out.loss + out.mtp_loss, model.lm_head.weight)[0] for out in outs]
    torch.testing.assert_close(*gradients)
    sampled = model(ids, labels=ids, vocabulary=sample_vocabulary(ids, 50, 30))
    assert sampled.loss.item() == pytest.approx(outs[0].loss.item(), rel=0.1)
    assert sampled.loss.item() != outs[0].loss.item()
