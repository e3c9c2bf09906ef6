"""Sampling: implementations against the reference, and the reference against the softmax."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exactness import implementations, seeds
from gossamer import ops

keys = st.integers(-(2**63), 2**63 - 1)


def random_logits(rows: int, count: int, spread: float, seed: int) -> Tensor:
    return torch.randn(rows, count, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("implementation", implementations("sample_tokens", but="reference"))
@given(
    st.lists(st.tuples(keys, st.sampled_from([0.0, 1e-30, 0.3, 1.0, 5.0])), min_size=1, max_size=5),
    st.integers(1, 300),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from([0.0, 0.5, 0.9]),
    seeds,
)
def test_sample_tokens(
    implementation: str, rows: list[tuple[int, float]], count: int, spread: float, forbidden: float, seed: int
) -> None:
    logits = random_logits(len(rows), count, spread, seed)
    logits[:, 1:][
        torch.rand(len(rows), count - 1, generator=torch.Generator().manual_seed(seed)) < forbidden
    ] = -math.inf
    sampled = []
    for name in ("reference", implementation):
        with ops.forced(sample_tokens=name):
            sampled.append(
                ops.sample_tokens(logits, torch.tensor([t for _, t in rows]), torch.tensor([key for key, _ in rows]))
            )
    assert torch.equal(*sampled)


@pytest.mark.parametrize("implementation", implementations("sample_tokens"))
def test_tokens_are_samples_of_the_softmax(implementation: str) -> None:
    logits, temperature, count = random_logits(1, 200, 2.0, 0), 0.7, 40_000
    generator = torch.Generator().manual_seed(1)
    random_keys = torch.randint(-(2**62), 2**62, (count,), generator=generator)
    with ops.forced(sample_tokens=implementation):
        tokens = ops.sample_tokens(logits.repeat(count, 1), torch.full((count,), temperature), random_keys)
    expected = (logits[0] / temperature).softmax(-1) * count
    counts, common = torch.bincount(tokens, minlength=200), expected >= 10
    chi2 = float(((counts - expected)[common] ** 2 / expected[common]).sum())
    freedom = int(common.sum())
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations
    assert abs(float((counts - expected)[~common].sum())) < 4 * float(expected[~common].sum()) ** 0.5


@pytest.mark.parametrize("implementation", implementations("sample_tokens"))
def test_similar_distributions_mostly_give_the_same_token(implementation: str) -> None:
    """At least with probability (1 − d) / (1 + d), with d half the sum of the probabilities' differences."""
    count = 5000
    one = random_logits(1, 100, 1.0, 0)
    other = one + random_logits(1, 100, 0.3, 1)
    distance = float((one.softmax(-1) - other.softmax(-1)).abs().sum()) / 2
    random_keys = torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(1))
    with ops.forced(sample_tokens=implementation):
        a, b = (ops.sample_tokens(x.repeat(count, 1), torch.ones(count), random_keys) for x in (one, other))
    share = float((a == b).float().mean())
    assert share > (1 - distance) / (1 + distance) - 0.02 and distance > 0.1


@pytest.mark.parametrize("implementation", implementations("sample_tokens"))
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_no_token_is_sampled_where_the_largest_logit_is_not_finite(implementation: str, wrong: float) -> None:
    logits = random_logits(3, 70, 1.0, 0)
    logits[1] = wrong if wrong == -math.inf else logits[1]
    logits[1, 66] = wrong
    with ops.forced(sample_tokens=implementation):
        for temperature in (0.0, 1.0):
            tokens = ops.sample_tokens(logits, torch.full((3,), temperature), torch.arange(3)).tolist()
            assert tokens[1] == -1 and tokens[0] >= 0 and tokens[2] >= 0
