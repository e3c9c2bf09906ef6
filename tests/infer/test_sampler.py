"""Choosing tokens: greedy, by temperature, by top-k, nucleus and min-p; penalties, biases, the random numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import UserError
from gossamer.infer import sampler as sampling
from gossamer.infer.request import Grammar, SamplingParams
from gossamer.infer.sampler import Sampler, logprobs, random_key, sample

logits_lists = st.lists(st.floats(-8, 8), min_size=1, max_size=12)


def drawn(values: list[float], place: int = 0, **params: object) -> int:
    sampler = Sampler(SamplingParams(1, **{"seed": 0} | params), [0])  # type: ignore[arg-type]
    return sample(torch.tensor([values]), [sampler], [place])[0]


@given(logits_lists)
def test_temperature_zero_takes_the_likeliest(values: list[float]) -> None:
    assert drawn(values, temperature=0.0) == int(torch.tensor(values).argmax())


@given(logits_lists, st.floats(0.05, 1), st.integers(0, 50))
def test_nucleus_is_the_smallest_set_that_holds_top_p(values: list[float], top_p: float, seed: int) -> None:
    token = drawn(values, top_p=top_p, seed=seed)
    probabilities = torch.tensor(values).softmax(-1)
    likelier = probabilities[probabilities > probabilities[token]].sum()
    assert likelier < top_p + 1e-5


@given(logits_lists, st.integers(1, 12), st.integers(0, 50))
def test_top_k_keeps_the_k_likeliest(values: list[float], top_k: int, seed: int) -> None:
    token = drawn(values, top_k=top_k, seed=seed)
    probabilities = torch.tensor(values).softmax(-1)
    assert int((probabilities > probabilities[token]).sum()) < top_k


@given(logits_lists, st.floats(0, 1), st.integers(0, 50))
def test_min_p_keeps_what_is_at_least_so_likely_as_a_part_of_the_likeliest(
    values: list[float], min_p: float, seed: int
) -> None:
    token = drawn(values, min_p=min_p, seed=seed)
    assert math.exp(values[token] - max(values)) >= min_p - 1e-5


@pytest.mark.parametrize(
    ("params", "left"),
    [
        ({}, [0, 1, 2, 3]),
        ({"temperature": 0.7}, [0, 1, 2, 3]),
        ({"top_k": 3}, [0, 1, 3]),
        ({"top_p": 0.6}, [0, 1]),
        ({"top_k": 3, "top_p": 0.93}, [0, 1, 3]),
        ({"min_p": 0.3}, [0, 1]),
    ],
    ids=str,
)
def test_the_distribution_is_the_models_over_what_is_left(params: dict[str, float], left: list[int]) -> None:
    logits = torch.tensor([0.5, 1.5, -1.0, 0.0])
    expected = torch.full((4,), float("-inf"))
    expected[left] = logits[left] / params.get("temperature", 1.0)
    sampler = Sampler(SamplingParams(1, seed=0, **params), [0])  # type: ignore[arg-type]
    found = torch.tensor(sample(logits.repeat(4000, 1), [sampler] * 4000, list(range(4000))))
    frequencies = torch.bincount(found, minlength=4) / len(found)
    assert frequencies.tolist() == pytest.approx(expected.softmax(-1).tolist(), abs=0.03)


def test_a_wide_nucleus_is_found_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens than are looked at first."""
    logits = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    for params in ({"top_p": 0.95}, {"min_p": 0.01}, {"top_k": 300, "top_p": 0.9}):
        wide = [drawn(logits, place, **params) for place in range(200)]
        monkeypatch.setattr(sampling, "_NUM_CANDIDATES", 400)
        assert [drawn(logits, place, **params) for place in range(200)] == wide
        monkeypatch.setattr(sampling, "_NUM_CANDIDATES", 2)
        assert [drawn(logits, place, **params) for place in range(200)] == wide
        monkeypatch.undo()


def test_what_is_forbidden_is_never_drawn() -> None:
    values = [float("-inf"), 0.0, float("-inf")]
    assert {drawn(values, place, temperature=temperature) for place in range(50) for temperature in (0.0, 3.0)} == {1}


def test_penalties_and_biases_change_the_logits_as_their_definitions_say() -> None:
    sampler = Sampler(
        SamplingParams(
            9, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={4: 1.5, 5: -math.inf}
        ),
        prompt=[0, 1],
    )  # fmt: skip
    for token in (2, 2, 1):
        sampler.count(token)
    logits = torch.tensor([1.0, -1.0, 3.0, 1.0, 1.0, 1.0])
    assert sampler.has_adjustments
    sampler.adjust(logits)
    assert logits.tolist() == [0.5, -2.0 - 0.75, 1.5 - 1.0, 1.0, 2.5, -math.inf]


def test_random_keys_are_even_and_belong_to_their_place() -> None:
    keys = torch.tensor([random_key(seed, place) for seed in range(50) for place in range(200)])
    assert len(keys.unique()) == len(keys) and keys.min() < 0 < keys.max()
    for shift in (0, 28, 56):
        counts = torch.bincount(keys >> shift & 15, minlength=16)
        assert float(((counts - 625) ** 2 / 625).sum()) < 40  # chi-square of 15 degrees of freedom
    assert random_key(2**70 + 3, 1) == random_key(3, 1) != random_key(3, 2)


@pytest.mark.parametrize("params", [{}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_of_logits_that_are_not_finite_nothing_is_drawn(params: dict[str, float], wrong: float) -> None:
    values = [wrong] * 3 if wrong == -math.inf else [0.0, wrong, 1.0]
    assert drawn(values, **params) == -1


def test_without_a_seed_no_two_requests_are_alike() -> None:
    assert Sampler(SamplingParams(1), [0]).seed != Sampler(SamplingParams(1), [0]).seed


def test_logprobs_are_those_of_the_softmax() -> None:
    logits = torch.tensor([0.5, 1.5, -1.0, 0.0])
    found, expected = logprobs(logits, 3, 2), logits.log_softmax(-1).tolist()
    assert found.token == 3 and found.logprob == pytest.approx(expected[3])
    assert found.top == ((1, pytest.approx(expected[1])), (0, pytest.approx(expected[0])))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0}, {"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": -1},
        {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}, {"repetition_penalty": 0.0}, {"presence_penalty": math.nan},
        {"frequency_penalty": math.inf}, {"logit_bias": {1: math.nan}}, {"logit_bias": {1: math.inf}}, {"stop": ("",)},
        {"logprobs": -1}, {"logprobs": 1000}, {"seed": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_what_has_no_meaning_is_refused(wrong: dict[str, object]) -> None:
    name = next(iter(wrong))
    with pytest.raises(UserError, match=name):
        SamplingParams(**{"max_tokens": 1} | wrong)  # type: ignore[arg-type]


def test_a_grammar_is_of_a_kind_that_is_known() -> None:
    with pytest.raises(UserError, match="did you mean 'regex'"):
        Grammar("regexp", "a")  # type: ignore[arg-type]
