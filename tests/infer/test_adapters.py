"""Engines for a model and its adapters on the same weights: each says what its own network says."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch

from engines import greedy, ids, network, request, run, tokenizer, tokens
from gossamer.errors import UserError
from gossamer.infer.adapters import AdapterEngines
from gossamer.infer.options import EngineOptions
from gossamer.model.causal_lm import CausalLM
from gossamer.model.low_rank import LowRankConfig, add_low_rank, beside, low_rank_state, targets_of

PROMPT = tokens(40)
OPTIONS = EngineOptions(page_size=8, snapshot_interval=16, max_batch=4, cache_tokens=1024, draft_length=1)


@cache
def networks() -> Mapping[str, CausalLM]:
    """The network, and two that share its weights and have an adapter each."""
    base = copy.deepcopy(network())
    found = {"": base}
    for seed, name in enumerate(("one", "two")):
        found[name] = beside(base)
        torch.manual_seed(seed)
        add_low_rank(found[name], LowRankConfig(rank=4))
        for target in targets_of(found[name]):
            assert target.low_rank is not None
            torch.nn.init.normal_(target.low_rank.B, std=0.1)
        found[name].requires_grad_(False)
    return found


def test_a_network_beside_another_shares_its_weights_and_nothing_else() -> None:
    base, one = networks()[""], networks()["one"]
    ours = dict(one.named_parameters())
    assert all(ours[name] is parameter for name, parameter in base.named_parameters())
    assert ours.keys() - dict(base.named_parameters()).keys() == low_rank_state(one).keys()
    assert not low_rank_state(base) and not low_rank_state(beside(one))


@pytest.mark.parametrize("weights", ["stored", "int8"])
def test_each_name_says_what_its_own_network_says(weights: str) -> None:
    """All at once and again, from the prefix cache: no states are another adapter's."""
    own = networks() if weights == "stored" else copy.deepcopy(networks())
    engine = AdapterEngines(own, tokenizer(), replace(OPTIONS, weights=weights))
    expected = {name: greedy(one, PROMPT, 10) for name, one in own.items()}
    assert len(set(expected.values())) == 3
    requests = [replace(request(f"r{name}", PROMPT, 10), adapter=name) for name in own]
    for _ in range(2):
        found = run(engine, requests)
        assert {name: ids(found[f"r{name}"]) for name in own} == expected
    stats = engine.stats()
    assert stats.finished == {"length": 6} and stats.prefix_hits == 3 and not stats.running


def test_requests_take_turns_and_end_when_they_are_told_to() -> None:
    engine = AdapterEngines(networks(), tokenizer(), OPTIONS)
    for name in ("", "one"):
        engine.submit(replace(request(f"r{name}", PROMPT, 100), adapter=name))
    begun = [{delta.id for delta in engine.step()} for _ in range(6)]
    assert begun[-2:] in ([{"r"}, {"rone"}], [{"rone"}, {"r"}])
    last = engine.abort("rone")
    assert last is not None and last.finish_reason == "abort" and engine.abort("nobody") is None
    assert all(delta.id == "r" for _ in range(3) for delta in engine.step())


def test_an_adapter_that_is_not_there_is_refused() -> None:
    engine = AdapterEngines(networks(), tokenizer(), OPTIONS)
    with pytest.raises(UserError, match="no adapter 'twos'; did you mean 'two'"):
        engine.submit(replace(request("x", PROMPT, 3), adapter="twos"))
