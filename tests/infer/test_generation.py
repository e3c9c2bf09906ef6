"""Continuing one prompt as text."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from engines import greedy, network, tokenizer
from gossamer.errors import UserError
from gossamer.infer.generation import sample_text
from gossamer.infer.request import SamplingParams

PROMPT = "ABCAB"


def text(seed: int | None = 0, count: int = 20, **sampling: object) -> str:
    params = SamplingParams(count, seed=seed, **sampling)  # type: ignore[arg-type]
    return "".join(sample_text(network(), tokenizer(), PROMPT, params))


def test_greedy_text_is_that_of_the_full_forward_behind_the_delimiter() -> None:
    ids = [tokenizer().eot_id, *tokenizer().encode(PROMPT)]
    assert text(temperature=0.0, ignore_eos=True) == tokenizer().decode(greedy(network(), ids, 20))


def test_the_same_seed_makes_the_same_text_whatever_was_drawn_before() -> None:
    first = text(seed=4)
    torch.rand(7)
    assert text(seed=4) == first
    assert text(seed=5) != first


def test_it_ends_where_the_document_ends() -> None:
    """The end of text is made likely, and does not show."""
    made = text(temperature=0.0, logit_bias={tokenizer().eot_id: 100.0})
    assert made == ""


def test_the_mode_of_the_model_is_put_back() -> None:
    model = network()
    model.train()
    try:
        assert len(text()) > 0 and model.training
    finally:
        model.eval()


def test_text_longer_than_the_model_is_meant_for_is_refused() -> None:
    with pytest.raises(UserError, match=r"6 \+ 507 tokens exceed the model's 512"):
        text(count=507)


def test_weights_that_are_not_finite_are_a_mistake_with_words() -> None:
    broken = deepcopy(network())
    broken.model.layers[2].mlp.gate.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"not finite at layer 2: 1 of 128 numbers of model\.layers\.2\.mlp\.gate"):
        list(sample_text(broken, tokenizer(), PROMPT, SamplingParams(5)))
