"""Training of low rank: what it changes, what stays, and that nothing which reads a weight ignores what is added."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import pytest
import torch

import gossamer
from engines import CONFIG, engine, greedy, ids, network, request, run, tokens
from gossamer import ops
from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.low_rank import (
    TARGETS,
    LowRankConfig,
    add_low_rank,
    load_low_rank_state,
    low_rank_state,
    merge_low_rank,
    targets_of,
)
from gossamer.model.quantize import quantize_to_int8

ROW = torch.randint(1, 50, (1, 90), generator=torch.Generator().manual_seed(3))
MIXED = replace(CONFIG, mlp_only_layers=(1,), intermediate_size=24, num_nextn_predict_layers=1)


def adapted(model: CausalLM, config: LowRankConfig | None = None) -> CausalLM:
    """A copy with matrices that change what it says."""
    model = copy.deepcopy(model)
    add_low_rank(model, config or LowRankConfig(rank=5, alpha=7))
    torch.manual_seed(1)
    for target in targets_of(model):
        if target.low_rank is not None:
            torch.nn.init.normal_(target.low_rank.B, std=0.1)
    return model.requires_grad_(False)


@cache
def tuned(dtype: torch.dtype = torch.float32) -> CausalLM:
    return adapted(network()).to(dtype)


def written_out(model: CausalLM) -> CausalLM:
    """A copy whose weights are the sums, made by another formula than `merge_low_rank` has."""
    model = copy.deepcopy(model)
    for target in targets_of(model):
        if (low_rank := target.low_rank) is not None:
            added = torch.einsum("...or,...ri->...oi", low_rank.B.double(), low_rank.A.double()) * low_rank.scale
            target.weight.data += added.to(target.weight.dtype)
            target.low_rank = None
    return model


@torch.no_grad()
def logits(model: CausalLM, row: torch.Tensor = ROW) -> torch.Tensor:
    out = model(row).logits
    assert out is not None
    return out


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """In float32 differences grow through the layers of a network whose weights are as large as these."""
    tolerance = 1e-9 if expected.dtype == torch.float64 else 2e-3
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_it_begins_as_the_network() -> None:
    model = copy.deepcopy(network())
    add_low_rank(model, LowRankConfig(rank=4))
    same(logits(model), logits(network()))


@pytest.mark.parametrize("length", [3, 90], ids=["results in order", "weights in order"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_forward_pass_is_that_of_the_sums(length: int, dtype: torch.dtype) -> None:
    expected = logits(written_out(tuned(dtype)), ROW[:, :length])
    assert not torch.allclose(expected, logits(network(), ROW[:, :length]).to(dtype), atol=0.1)
    same(logits(tuned(dtype), ROW[:, :length]), expected)


def test_after_one_step_every_kind_of_target_has_moved_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = CausalLM(MIXED)
    before = copy.deepcopy(model)
    parameters = add_low_rank(model, LowRankConfig(rank=4))
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0)
    model(ROW, labels=ROW, mtp=None).loss.backward()
    optimizer.step()
    assert {target.kind for target in targets_of(model)} == set(TARGETS)
    for target in targets_of(model):
        assert target.low_rank is not None
        assert target.low_rank.B.any(), target.parameter
    old = dict(before.named_parameters())
    stay = {name: part for name, part in model.named_parameters() if name in old}
    assert stay.keys() == old.keys()
    assert all(torch.equal(part, old[name]) and part.grad is None for name, part in stay.items())


def test_gradients_are_those_of_the_sums() -> None:
    """The chain rule through W + s B A, for every target."""
    model, whole = copy.deepcopy(tuned(torch.float64)), written_out(tuned(torch.float64))
    for target in targets_of(model):
        assert target.low_rank is not None
        target.low_rank.requires_grad_(True)
    for target in targets_of(whole):
        target.weight.requires_grad_(True)
    model(ROW, labels=ROW, mtp=None).loss.backward()
    whole(ROW, labels=ROW, mtp=None).loss.backward()
    for ours, theirs in zip(targets_of(model), targets_of(whole), strict=True):
        low_rank, dW = ours.low_rank, theirs.weight.grad
        assert low_rank is not None and dW is not None
        for factor, expected in (
            (low_rank.A, low_rank.scale * low_rank.B.mT @ dW),
            (low_rank.B, low_rank.scale * dW @ low_rank.A.mT),
        ):
            torch.testing.assert_close(factor.grad, expected, atol=1e-10, rtol=1e-8, msg=ours.parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_merged_it_says_the_same(dtype: torch.dtype) -> None:
    model = tuned(dtype) if dtype == torch.float64 else adapted(network(dtype=dtype))
    merged = copy.deepcopy(model)
    error = merge_low_rank(merged)
    assert all(target.low_rank is None for target in targets_of(merged))
    assert all(target.weight.dtype == dtype for target in targets_of(merged))
    assert dict(merged.named_parameters()).keys() == dict(network().named_parameters()).keys()
    if dtype != torch.bfloat16:
        assert error < 1e-6
        return same(logits(merged), logits(model))
    exact = written_out(model.float())
    largest = max(
        float((one.weight.float() - other.weight).abs().max())
        for one, other in zip(targets_of(merged), targets_of(exact), strict=True)
    )
    assert largest == pytest.approx(error, rel=1e-2) and 0 < error < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", ["stored", "int8"])
def test_the_engine_says_what_the_forward_pass_says(weights: str, dtype: torch.dtype) -> None:
    """A prompt through many tokens and few, then token by token, with drafts that are forgotten."""
    model = adapted(network(dtype=dtype))
    tried = engine(model, weights=weights, draft_length=2, prefill_chunk=32)
    prompt = tokens(40)
    answer = ids(run(tried, [request("x", prompt, 12)])["x"])
    assert answer == greedy(model, prompt, 12)
    assert answer != greedy(network(dtype=dtype), prompt, 12)


def test_int8_rounds_the_frozen_weights_and_not_what_is_added() -> None:
    model, base = copy.deepcopy(tuned()), copy.deepcopy(network())
    rounded = quantize_to_int8(model)
    quantize_to_int8(base)
    state = low_rank_state(model)
    assert not set(rounded) & set(state.values())
    add_low_rank(base, LowRankConfig(rank=5, alpha=7))
    load_low_rank_state(base, state)
    assert torch.equal(logits(base), logits(model))
    same(logits(written_out(model)), logits(model))


@pytest.mark.parametrize(
    "targets",
    [("in_proj_qkvz", "in_proj_ba", "out_proj"), ("experts.gate_up_proj", "experts.down_proj"), ("experts.down_proj",)],
)
def test_some_targets_alone(targets: tuple[str, ...]) -> None:
    model = adapted(network(), LowRankConfig(rank=6, targets=targets))
    assert {target.kind for target in targets_of(model) if target.low_rank is not None} == set(targets)
    same(logits(written_out(model)), logits(model))


def test_ranks_and_scales() -> None:
    """Experts share the rank of a token, and gates have no more than their rows."""
    model = CausalLM(MIXED)
    add_low_rank(model, LowRankConfig(rank=11, alpha=8))
    for target in targets_of(model):
        rank = {"in_proj_ba": 8}.get(target.kind, 5 if "experts" in target.kind else 11)
        assert target.low_rank is not None
        assert target.low_rank.A.shape[-2] == target.low_rank.B.shape[-1] == rank
        assert target.low_rank.scale == 8 / rank
        bound = target.weight.shape[-1] ** -0.5
        assert 0.9 * bound < float(target.low_rank.A.detach().abs().max()) <= bound
        assert target.low_rank.A.dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (LowRankConfig(targets=("q_porj",)), ["q_porj", "did you mean 'q_proj'?"]),
        (LowRankConfig(targets=("experts.gate_proj",)), ["unknown 'experts.gate_proj'", "experts.gate_up_proj"]),
        (LowRankConfig(rank=33), ["rank = 33", "from 1 to 32", "in_proj_qkvz"]),
        (LowRankConfig(rank=34, targets=("experts.down_proj",)), ["from 1 to 16", "experts.down_proj"]),
        (LowRankConfig(rank=0), ["rank = 0", "from 1 to"]),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_changed(config: LowRankConfig, parts: list[str]) -> None:
    model = CausalLM(CONFIG)
    with pytest.raises(UserError) as caught:
        add_low_rank(model, config)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_network_without_experts_has_no_experts_as_targets() -> None:
    model = CausalLM(replace(CONFIG, num_experts=0, intermediate_size=24))
    with pytest.raises(UserError, match=r"the network has no experts\.down_proj; it has in_proj_qkvz"):
        add_low_rank(model, LowRankConfig(targets=("experts.down_proj",)))
    assert add_low_rank(model, LowRankConfig(rank=2))


def test_experts_are_both_of_their_stacks() -> None:
    model = CausalLM(CONFIG)
    add_low_rank(model, LowRankConfig(rank=4, targets=("experts", "q_proj")))
    kinds = {target.kind for target in targets_of(model) if target.low_rank is not None}
    assert kinds == {"experts.gate_up_proj", "experts.down_proj", "q_proj"}


def test_a_state_of_other_matrices_is_refused() -> None:
    model = adapted(network(), LowRankConfig(rank=3))
    with pytest.raises(UserError, match="another network, rank or list of targets"):
        load_low_rank_state(model, low_rank_state(tuned()))


def test_a_model_with_an_adapter_is_not_saved_as_one(tmp_path) -> None:
    with pytest.raises(UserError, match="merge it"):
        gossamer.save(tuned(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("weights", ["stored", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_of_decoding_add_what_the_modules_add(dtype: torch.dtype, weights: str) -> None:
    """Token by token and a few at a time, and beside others as alone."""
    model, found = adapted(network(dtype=dtype), LowRankConfig(rank=7, alpha=5)), {}
    for which in ("native", "reference"):
        with ops.forced(decode_layers=which) if which == "reference" else nullcontext():
            tried = engine(model, weights=weights, draft_length=2, prefill_chunk=9)
            assert tried._decoder._trunk.is_readable_by_kernels
            requests = [request(str(n), tokens(5 + 20 * n), 6, logprobs=0) for n in range(3)]
            found[which] = run(tried, requests)
    for n in range(3):
        ours, theirs = (
            [one.logprob for delta in found[which][str(n)] for one in delta.logprobs or ()] for which in found
        )
        assert ours == pytest.approx(theirs, abs=2e-3)
