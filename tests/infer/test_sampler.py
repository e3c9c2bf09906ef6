"""Choosing tokens: greedy, by temperature, by nucleus."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.infer.sampler import Sampling, choose

logits_lists = st.lists(st.floats(-8, 8), min_size=1, max_size=12)


@given(logits_lists)
def test_temperature_zero_takes_the_likeliest(values):
    logits = torch.tensor(values)
    assert choose(logits, Sampling(temperature=0), torch.Generator()) == int(logits.argmax())


@given(logits_lists, st.floats(0.05, 1), st.integers(0, 50))
def test_nucleus_is_the_smallest_set_that_holds_top_p(values, top_p, seed):
    logits = torch.tensor(values)
    token = choose(logits, Sampling(1.0, top_p), torch.Generator().manual_seed(seed))
    probabilities = logits.softmax(-1)
    likelier = probabilities[probabilities > probabilities[token]].sum()
    assert likelier < top_p + 1e-5


def test_the_distribution_is_the_models():
    logits = torch.tensor([0.5, 1.5, -1.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([choose(logits, Sampling(0.7, 1.0), generator) for _ in range(4000)])
    frequencies = torch.bincount(drawn, minlength=4) / len(drawn)
    assert frequencies.tolist() == pytest.approx((logits / 0.7).softmax(-1).tolist(), abs=0.03)
